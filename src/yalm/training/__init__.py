"""Training: one loop a reader follows top to bottom, and what stands around it."""
