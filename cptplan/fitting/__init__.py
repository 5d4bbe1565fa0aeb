"""Fitting laws to curves: separable solver, intervals, and the test that decides which form to trust."""
