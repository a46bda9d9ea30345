"""What a refresh of `whitening` costs, and which of its forms is cheaper: operations as torch's counter sees them.

A multiplication and an addition are two operations. See :func:`jorge.methods.whitening.whiten` for the forms.
"""

from __future__ import annotations

from functools import cache

from jorge.methods.method import DAMPING_PERIOD, Shape


@cache
def takes_narrow(d: int, k: int) -> bool:
    """Whether a side of d with the other side of k is cheaper in the narrow form.

    >>> takes_narrow(1024, 256), takes_narrow(256, 256), takes_narrow(256, 1024)
    (True, False, False)
    """
    narrow = 2 * k * k * d + _narrow_flops(d, k) + _narrow_damping_flops(d) / DAMPING_PERIOD
    return narrow < 2 * d * d * k + _wide_flops(d) + _wide_damping_flops(d) / DAMPING_PERIOD


def whiten_flops(shape: Shape, full: tuple[bool, bool], *, substeps: int, damped: bool, degree: int = 2) -> int:
    """Operations of a refresh of one block; `full` says which sides are, `damped` whether those are damped in it."""
    (m, n), (left, right) = shape, full
    narrow_left, narrow_right = left and takes_narrow(m, n), right and takes_narrow(n, m)
    step = 2 * m * m * n * left + 2 * m * n * n * right  # V
    step += 0 if left else 2 * m * n * n * right  # G R for the diagonal left side
    step += 2 * m * m * n * ((left and not narrow_left) or narrow_right)  # VVᵀ
    step += 2 * m * n * n * ((right and not narrow_right) or narrow_left)  # VᵀV
    once = 0
    for d, k, is_full, narrow in ((m, n, left, narrow_left), (n, m, right, narrow_right)):
        if is_full:
            step += _narrow_flops(d, k) if narrow else _wide_flops(d)
            step -= 2 * (k if narrow else d) ** 3 if degree == 1 else 0
            once += (_narrow_damping_flops(d) if narrow else _wide_damping_flops(d)) if damped else 0
    return substeps * step + once


def _wide_flops(d: int) -> int:
    """Beside `VVᵀ` and the damping."""
    return 6 * d**3


def _wide_damping_flops(d: int) -> int:
    return 2 * d**3


def _narrow_flops(d: int, k: int) -> int:
    """Beside `VᵀV` and the damping."""
    return 4 * d * d * k + 6 * d * k * k + 4 * k**3


def _narrow_damping_flops(d: int) -> int:
    return 8 * d**3
