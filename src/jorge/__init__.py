"""Jorge: second-order optimization without inverses, for PyTorch (arXiv 2310.12298, and beyond it)."""

from jorge.optimizer import Jorge

__all__ = ["Jorge", "__version__"]

__version__ = "0.1.0"
