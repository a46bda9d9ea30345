"""The mathematics: inverse roots that are tracked by matrix products, as pure functions on batches of matrices.

Every function takes a batch `[count, m, n]` of gradients (or `[count, d, d]` of roots) and returns new tensors;
nothing here reads a value back to the host, branches on data, or draws a random number.

A gradient `G` (m × n) is preconditioned as `L G R`. A *full* side is a symmetric matrix, `[count, d, d]`; a
*diagonal* side is a vector, `[count, d]`. Four methods (:mod:`jorge.methods` gives them one face):

========== ========================================================================= =====================
method     what it tracks                                                             source
========== ========================================================================= =====================
binomial   the inverse fourth root, by the paper's truncated binomial series          arXiv 2310.12298
congruence the same root, kept symmetric positive definite, with Shampoo's memory     this package
whitening  the inverse square root of the already preconditioned gradient's moments   this package
exact      Shampoo: the inverse fourth root by `eigh`                                 arXiv 1802.09568
========== ========================================================================= =====================

A module a method; each has a *wide* form and, for blocks far from square, a *narrow* one, with the counts of operations
that choose between them beside it. The constants were derived as said where they stand. The paper's full text was not
at hand when this was written: its recursion is reconstructed from its abstract, its public reviews and a third party's
comments on the algorithm.
"""

from jorge.roots.binomial import binomial, binomial_flops, binomial_start, binomial_takes_narrow
from jorge.roots.congruence import (
    CONGRUENCE_CAP,
    CONGRUENCE_LINE,
    CONGRUENCE_LINE_CAP,
    CONGRUENCE_POLYNOMIAL,
    congruence,
    congruence_flops,
    congruence_start,
    congruence_takes_narrow,
)
from jorge.roots.exact import exact_root
from jorge.roots.products import (
    DAMPING_PERIOD,
    Precision,
    apply,
    apply_left,
    apply_right,
    choose,
    congruent,
    largest_entry,
    mean_diagonal,
    multiply,
    multiply_add,
    norm,
    per_block,
    precision_scope,
    square_sum,
    symmetrize,
    trace,
)
from jorge.roots.whitening import (
    WHITENING_CAP,
    WHITENING_LINE,
    WHITENING_LINE_CAP,
    WHITENING_POLYNOMIAL,
    diagonal,
    takes_narrow,
    whitening,
    whitening_flops,
)

__all__ = [
    "CONGRUENCE_CAP",
    "CONGRUENCE_LINE",
    "CONGRUENCE_LINE_CAP",
    "CONGRUENCE_POLYNOMIAL",
    "DAMPING_PERIOD",
    "WHITENING_CAP",
    "WHITENING_LINE",
    "WHITENING_LINE_CAP",
    "WHITENING_POLYNOMIAL",
    "Precision",
    "apply",
    "apply_left",
    "apply_right",
    "binomial",
    "binomial_flops",
    "binomial_start",
    "binomial_takes_narrow",
    "choose",
    "congruence",
    "congruence_flops",
    "congruence_start",
    "congruence_takes_narrow",
    "congruent",
    "diagonal",
    "exact_root",
    "largest_entry",
    "mean_diagonal",
    "multiply",
    "multiply_add",
    "norm",
    "per_block",
    "precision_scope",
    "square_sum",
    "symmetrize",
    "takes_narrow",
    "trace",
    "whitening",
    "whitening_flops",
]
