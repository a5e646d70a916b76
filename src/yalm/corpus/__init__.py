"""The corpus: raw Russian and English text to clean, deduplicated, weighted documents and their report."""
