"""Laws of loss in continual pre-training, one file each over one small protocol."""
