"""Laws of final losses: one number per finished run, without its learning rates or its curve."""
