"""What a finished corpus says of itself: its facts, their page and card, and what became of one document."""
