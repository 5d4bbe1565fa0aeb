"""Curves of runs that nobody trained, from published or fitted laws."""
