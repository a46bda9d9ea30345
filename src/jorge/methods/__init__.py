"""The methods, one a file: how a gradient is preconditioned, and by what that is tracked.

========== ========================================================================= =====================
method     what it tracks                                                             source
========== ========================================================================= =====================
whitening  the inverse square root of the already preconditioned gradient's moments   this package
congruence Shampoo's root, kept symmetric positive definite, with Shampoo's memory    this package
binomial   the inverse fourth root, by the paper's truncated binomial series          arXiv 2310.12298
exact      Shampoo: the inverse fourth root by `eigh`                                 arXiv 1802.09568
========== ========================================================================= =====================
"""

from jorge.methods.binomial import Binomial
from jorge.methods.congruence import Congruence
from jorge.methods.exact import Exact
from jorge.methods.method import (
    DAMPING_PERIOD,
    EARLY_REFRESHES,
    Counterpart,
    Method,
    Refresh,
    Shape,
    Sides,
    State,
)
from jorge.methods.whitening import Whitening

__all__ = [
    "DAMPING_PERIOD",
    "EARLY_REFRESHES",
    "METHODS",
    "Counterpart",
    "Method",
    "Refresh",
    "Shape",
    "Sides",
    "State",
]

#: The methods by name.
METHODS: dict[str, Method] = {method.name: method for method in (Whitening(), Congruence(), Binomial(), Exact())}
