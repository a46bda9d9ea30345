"""Jorge: second-order optimization without inverses, for PyTorch (arXiv 2310.12298, and beyond it)."""

from typing import TYPE_CHECKING, Any

from jorge.groups import param_groups
from jorge.optimizer import Jorge

if TYPE_CHECKING:
    from jorge import cost as cost

__all__ = ["Jorge", "__version__", "cost", "param_groups"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`jorge.cost` is loaded when it is first asked for: training does without it."""
    if name == "cost":
        import importlib

        return importlib.import_module("jorge.cost")
    raise AttributeError(f"module 'jorge' has no attribute {name!r}")
