"""What a document must be to be kept: every rule a small class whose fields are its thresholds."""
