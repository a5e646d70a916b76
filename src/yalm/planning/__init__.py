"""A training run on paper: memory, communication, time, failures, and the layout that is fastest."""
