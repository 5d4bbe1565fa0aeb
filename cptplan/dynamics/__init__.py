"""Critical point, turning length, loss potential and the best replay ratio of a law."""
