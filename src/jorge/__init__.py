"""Jorge: second-order optimization without inverses, for PyTorch (arXiv 2310.12298, and beyond it)."""

import importlib
from typing import TYPE_CHECKING, Any

from jorge.groups import param_groups
from jorge.optimizer import Jorge

if TYPE_CHECKING:
    from jorge import cost as cost
    from jorge import testing as testing
    from jorge.checkup import doctor as doctor

__all__ = ["Jorge", "__version__", "cost", "doctor", "param_groups", "testing"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is loaded when it is first asked for: training does without it."""
    if name in ("cost", "testing"):
        return importlib.import_module(f"jorge.{name}")
    if name == "doctor":
        return importlib.import_module("jorge.checkup").doctor
    raise AttributeError(f"module 'jorge' has no attribute {name!r}")
