"""Where texts come from: one streaming reader for each layout, all yielding the same documents."""
