"""Inference: a loaded model that generates, streams and scores text."""
