"""A run against its plan while it trains."""
