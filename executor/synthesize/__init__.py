"""Synthetic replay: texts sampled from a frozen base model, as a corpus."""
