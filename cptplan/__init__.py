"""cptplan: plan a continual pre-training run before paying for it."""

__version__ = "0.1.0"
