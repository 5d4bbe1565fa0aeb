"""Whether to do it at all, what to check before, and what ails a run."""
