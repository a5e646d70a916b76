"""`make demo`: the whole way from real text to a model that writes, in minutes."""
