"""Batched matrix products at a chosen precision, and the small pieces that every method is made of.

`precision` is that of the products alone; sums, norms and what is stored stay in the dtype of the operands:

============= ====================================================== =================================================
precision     on CUDA                                                on a CPU
============= ====================================================== =================================================
`None`        as `"tf32"`                                            as torch's own settings say
`"float32"`   IEEE float32                                           float32
`"tf32"`      TF32 tensor cores                                      operands rounded to TF32: its accuracy, no speed
`"bfloat16"`  bfloat16 operands, sums and results in float32         the same, by its bfloat16 units where it has them
============= ====================================================== =================================================

float64 operands are multiplied in float64 whatever is asked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from jorge.options import Precision

_BLOCK = (-2, -1)


@contextmanager
def precision_scope(device: torch.device, precision: Precision) -> Iterator[None]:
    """Let the device multiply float32 as asked inside: that is a switch of the whole device and no argument.

    CUDA is switched between IEEE float32 and TF32; a CPU is let use its bfloat16 units. Inside a compiled graph, where
    switches cannot be turned, everything stays as torch's own settings say.

    Afterwards the switch follows a more general setting of torch's again, where that says what the switch did before.
    """
    wanted = _switch(device, precision)
    if wanted is None or torch.compiler.is_compiling():
        yield
        return
    backend, value = wanted
    before = backend.fp32_precision
    if before == value:
        yield
        return
    backend.fp32_precision = value
    try:
        yield
    finally:
        backend.fp32_precision = "none"
        if backend.fp32_precision != before:  # it was set apart
            backend.fp32_precision = before


def _switch(device: torch.device, precision: Precision) -> tuple[Any, str] | None:
    if device.type == "cuda" and precision != "bfloat16":
        return torch.backends.cuda.matmul, "ieee" if precision == "float32" else "tf32"
    if device.type == "cpu" and precision == "bfloat16":
        return getattr(torch.backends.mkldnn, "matmul"), "bf16"  # noqa: B009 - torch does not declare it
    return None


def multiply(a: Tensor, b: Tensor, precision: Precision = None) -> Tensor:
    """`A B` for each of `[count, m, k]` and `[count, k, n]`."""
    if precision == "bfloat16" and a.is_cuda and a.dtype == torch.float32:
        product: Tensor = torch.bmm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
        return product
    return torch.bmm(_rounded(a, precision), _rounded(b, precision))


def multiply_add(
    c: Tensor,
    a: Tensor,
    b: Tensor,
    precision: Precision = None,
    *,
    beta: float = 1.0,
    alpha: float = 1.0,
    into: Tensor | None = None,
) -> Tensor:
    """`beta·C + alpha·A B` for each block, in a new tensor or `into` one, which may be C."""
    if precision == "bfloat16" and a.is_cuda and a.dtype == torch.float32:
        return torch.add(c * beta, multiply(a, b, precision), alpha=alpha, out=into)
    a, b = _rounded(a, precision), _rounded(b, precision)
    return torch.baddbmm(c, a, b, beta=beta, alpha=alpha, out=into)


def _rounded(operand: Tensor, precision: Precision) -> Tensor:
    """The operand as the precision's units would read it, where this device has none; float32 in, float32 out."""
    if operand.dtype != torch.float32 or operand.is_cuda or precision in (None, "float32"):
        return operand
    if precision == "bfloat16":
        return operand.bfloat16().float()
    bits = operand.contiguous().view(torch.int32)  # TF32 keeps 10 of the 23 bits of the fraction
    rounded = (bits + 0xFFF + ((bits >> 13) & 1)).bitwise_and_(-0x2000).view(torch.float32)
    return torch.where(torch.isfinite(operand), rounded, operand)


def apply_left(left: Tensor, grad: Tensor, precision: Precision = None) -> Tensor:
    """`L G`, a new `[count, m, n]`; L is `[count, m, m]` or, diagonal, `[count, m]`."""
    return multiply(left, grad, precision) if left.dim() == 3 else left.unsqueeze(-1) * grad


def apply_right(grad: Tensor, right: Tensor, precision: Precision = None) -> Tensor:
    """`G R`, a new `[count, m, n]`; R is `[count, n, n]` or, diagonal, `[count, n]`."""
    return multiply(grad, right, precision) if right.dim() == 3 else grad * right.unsqueeze(-2)


def two_sided(state: Mapping[str, Tensor], grad: Tensor, precision: Precision = None) -> Tensor:
    """The direction `L G R` from a stack's `left` and `right`, `[count, m, n]` in the dtype of `grad`."""
    return apply_right(
        apply_left(state["left"].to(grad.dtype), grad, precision), state["right"].to(grad.dtype), precision
    )


def blend_of(refreshes: Tensor, beta2: float) -> Tensor:
    """The weight of the newest gradient, `max(1 − β2, 1/(k+1))` after k refreshes, `[count]`."""
    return (1 / (refreshes + 1)).clamp(min=1 - beta2)


def symmetrize(matrices: Tensor) -> Tensor:
    """`(A + Aᵀ)/2`, symmetric to the bit."""
    return (matrices + matrices.mT).mul_(0.5)


def congruent(root: Tensor, change: Tensor, precision: Precision) -> Tensor:
    """`(I+E) H (I+E)` of symmetric H and E, symmetric to the bit.

    It is `B + Bᵀ` with `B = H/2 + (H + E H/2) E`: H itself is never rounded to the precision of the products. The
    memory of E holds the result.
    """
    half = multiply_add(root, change, root, precision, alpha=0.5)
    half = multiply_add(root, half, change, precision, beta=0.5)
    return torch.add(half, half.mT, out=change)


def choose(mask: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` where the block's `mask` is true, `old` (to the bit) elsewhere."""
    return torch.where(mask.view(-1, *(1,) * (new.dim() - 1)), new, old)


def diagonal_sum(matrices: Tensor) -> Tensor:
    """Trace of each block, `[count]`."""
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def unit_diagonals(roots: list[Tensor]) -> list[Tensor]:
    """Scale each block of each tensor to a mean diagonal of 1, in place."""
    torch._foreach_div_(roots, [per_block(root.diagonal(dim1=-2, dim2=-1).mean(-1)) for root in roots])
    return roots


def norm(tensor: Tensor) -> Tensor:
    """Frobenius norm of each block, `[count]`; a diagonal side, `[count, d]`, counts as its diagonal matrix."""
    lengths: Tensor = torch.linalg.vector_norm(tensor, dim=_BLOCK if tensor.dim() == 3 else -1)
    return lengths


def square_sum(tensor: Tensor) -> Tensor:
    """Sum of squares of each block, `[count]`; of a side `O` it is `tr(O Oᵀ)`."""
    return norm(tensor).square()


def largest_entries(tensors: Sequence[Tensor]) -> Tensor:
    """Largest absolute value of each block of tensors `[count, m, n]`, `[total]`; NaN where there is one."""
    highest, lowest = (
        torch.cat(each) for each in zip(*((t.amax(_BLOCK), t.amin(_BLOCK)) for t in tensors), strict=True)
    )
    return torch.maximum(highest, lowest.neg_())


def per_block(values: Tensor) -> Tensor:
    """`[count]` as `[count, 1, 1]`."""
    return values.view(-1, 1, 1)


def split(values: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """One value a block, `[total]`, as `[count, 1, 1]` for each tensor."""
    return torch.split(per_block(values), [len(tensor) for tensor in tensors])
