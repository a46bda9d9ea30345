"""The same model under other optimizers: state, FLOPs and bytes, counted from the algorithms.

SGD and AdamW are torch's own to the byte (`foreach=True`). The others are the algorithms of their papers, not any one
package; matrices are read as ours are, a convolution as out × (in·h·w). Where an algorithm takes an eigen- or QR
decomposition, whose work torch's counter does not see, a nominal count of Golub & Van Loan, *Matrix Computations*
(4th edition), stands apart from the products:

* symmetric eigendecomposition with vectors: 9 d³ (§ 8.3);
* QR of a square matrix, Householder, with Q formed: 8/3 d³ (§ 5.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from jorge.blocks import matrix_shape
from jorge.cost.weights import Weight

#: Passes over a parameter's elements that torch's foreach steps make, reading and writing: SGD `b ← μb + g`,
#: `w ← w − lr·b`; AdamW `w ← (1−lr·λ)w`, `m ← lerp`, `v ← β2 v + (1−β2) g²`, `√v`, two scalings, `+ε`, `w ← w − m/d`.
SGD_PASSES, ADAMW_PASSES = 8, 20
#: Muon: `b ← lerp` (3), Nesterov's lerp (3), norm (1), scaling (2), decay (2), `w ← w − lr·u` (3).
MUON_PASSES, MUON_ITERATIONS = 14, 5
#: SOAP, on matrices: AdamW's, and nothing else elementwise on m × n; each factor's running average is 5 passes of d².
SOAP_FACTOR_PASSES, SOAP_MAX_DIM = 5, 10_000


@dataclass(frozen=True)
class Rival:
    """An optimizer's cost for the whole model.

    Args:
        name: which optimizer.
        state_bytes: optimizer state.
        flops_per_step: matrix products, a mean over the interval.
        nominal_flops_per_step: eigen- and QR decompositions, by the nominal counts above.
        bytes_per_step: moved by elementwise work.
        overhead: predicted extra work over the baseline's training; `None` where the model's FLOPs are not known.
        note: what was counted.
    """

    name: str
    state_bytes: int
    flops_per_step: float
    nominal_flops_per_step: float
    bytes_per_step: float
    overhead: float | None
    note: str

    @property
    def work(self) -> float:
        """All FLOPs of a step."""
        return self.flops_per_step + self.nominal_flops_per_step


def eigh_flops(d: int) -> int:
    """Nominal FLOPs of the eigendecomposition of a symmetric d × d matrix: 9 d³."""
    return 9 * d**3


def qr_flops(d: int) -> int:
    """Nominal FLOPs of the QR decomposition of a d × d matrix with Q formed: 8/3 d³."""
    return round(8 / 3 * d**3)


def sgd(weights: Sequence[Weight]) -> Rival:
    """`torch.optim.SGD` with momentum, without weight decay: one buffer."""
    size = sum(_nbytes(w) for w in weights)
    return Rival("SGD", size, 0.0, 0.0, float(SGD_PASSES * size), None, "torch.optim.SGD with momentum")


def adamw(weights: Sequence[Weight]) -> Rival:
    """`torch.optim.AdamW`: two buffers, and four bytes a parameter for its step."""
    size = sum(_nbytes(w) for w in weights)
    state = sum(_adamw_state(w) for w in weights)
    return Rival("AdamW", state, 0.0, 0.0, float(ADAMW_PASSES * size), None, "torch.optim.AdamW")


def soap(weights: Sequence[Weight], *, interval: int) -> Rival:
    """SOAP (arXiv 2409.11321, algorithm 3): Adam in Shampoo's eigenbasis, full sides up to 10000.

    State: two moments; a factor and a basis for each side. A step: `GGᵀ` and `GᵀG`, and gradient, momentum and update
    rotated, `8 mn(m+n)` for two full sides. Every `interval` steps: a power iteration `L Q` and its QR a side. Its
    first step's eigendecomposition is left out. Vectors take AdamW's step.
    """
    state, flops, nominal, moved = 0, 0.0, 0.0, 0.0
    for w in weights:
        matrix = matrix_shape(w.shape) if w.tensor.numel() else None
        state += _adamw_state(w)
        moved += ADAMW_PASSES * _nbytes(w)
        for d in matrix or ():
            if d <= SOAP_MAX_DIM:
                state += 2 * d * d * w.dtype.itemsize
                flops += 4 * 2 * d * w.tensor.numel() + 2 * d**3 / interval
                nominal += qr_flops(d) / interval
                moved += SOAP_FACTOR_PASSES * d * d * w.dtype.itemsize
    return Rival("SOAP", state, flops, nominal, moved, None, f"full sides up to {SOAP_MAX_DIM}, QR at the interval")


def muon(weights: Sequence[Weight]) -> Rival:
    """Muon (K. Jordan, 2024; arXiv 2502.16982): five Newton–Schulz iterations on the momentum at every step.

    For r × c with r ≤ c an iteration is `A = XXᵀ`, `B = bA + cA²`, `aX + BX`: `4 r²c + 2 r³`. What
    :mod:`jorge.cost.muon_partition` leaves to AdamW takes that one's step.
    """
    state, flops, moved = 0, 0.0, 0.0
    for w in weights:
        matrix = matrix_shape(w.shape) if w.tensor.numel() else None
        if matrix is None or not w.hidden:
            state += _adamw_state(w)
            moved += ADAMW_PASSES * _nbytes(w)
            continue
        r, c = sorted(matrix)
        state += _nbytes(w)
        flops += MUON_ITERATIONS * (4 * r * r * c + 2 * r**3)
        moved += MUON_PASSES * _nbytes(w)
    return Rival("Muon", state, flops, 0.0, moved, None, "embeddings, output layers and vectors by AdamW")


def _nbytes(w: Weight) -> int:
    return math.prod(w.shape) * w.dtype.itemsize


def _adamw_state(w: Weight) -> int:
    return 2 * _nbytes(w) + 4
