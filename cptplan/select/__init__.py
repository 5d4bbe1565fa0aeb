"""Which checkpoint of a run to keep."""
