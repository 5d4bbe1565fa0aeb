"""Which short runs to train, first and next, and what they cost."""
