"""Where a training step's time and memory go, and what to do about it."""
