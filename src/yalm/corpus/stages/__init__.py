"""The stages of the pipeline as tasks over files; what they decide is in the rules."""
