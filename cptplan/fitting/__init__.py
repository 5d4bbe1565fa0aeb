"""Fitting laws to curves: separable solver, draws, and the test that decides which form to trust."""
