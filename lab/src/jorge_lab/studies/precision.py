"""What `matmul_precision` costs in accuracy: `python -m jorge_lab.studies.precision`.

Prints a Markdown table: every method at each precision against the same refreshes in float64, for gradients whose two
sides have the condition numbers given and whose entries are about as large as `SIZE`. TF32, bfloat16 and float16 are
emulated on a CPU by rounding the operands, with sums in float32: their accuracy is that of a GPU's units, their speed
is not. float16 is no precision that Jorge offers. It stands here twice: as it is, and with each operand divided by its
largest entry before it is rounded, since what is below 6e-8 is nothing in float16 and what is above 65,504 infinite.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from jorge.methods import METHODS
from jorge.methods.products import largest_entries, per_block
from jorge.options import Options, Precision
from jorge.stacking import Blocks, refresh_blocks
from jorge_lab.runs.environment import environment

SHAPE, REFRESHES, SIZE = (96, 64), 300, 1e-6


class Float16Products(TorchFunctionMode):
    """Inside, batched products round their operands to float16.

    Args:
        scaled: divide each operand by its largest entry first, and multiply the product by both.
    """

    def __init__(self, *, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator."""
        if func is torch.bmm:
            return func(*(self._rounded(operand) for operand in args))
        if func is torch.baddbmm:
            c, *operands = args
            return func(c, *(self._rounded(operand) for operand in operands), **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _rounded(self, operand: Tensor) -> Tensor:
        if not self.scaled:
            return operand.half().float()
        largest = per_block(largest_entries([operand]))
        return torch.where(largest > 0, (operand / largest).half() * largest, operand)


#: What the table calls them; the precision that Jorge is asked for; what is done to its products besides.
PRECISIONS: dict[str, tuple[Precision, Callable[[], AbstractContextManager[Any]]]] = {
    "float32": ("float32", nullcontext),
    "tf32": ("tf32", nullcontext),
    "bfloat16": ("bfloat16", nullcontext),
    "float16": ("float32", lambda: Float16Products(scaled=False)),
    "float16, scaled": ("float32", lambda: Float16Products(scaled=True)),
}


def gradients(condition: float) -> list[Tensor]:
    """Gradients `SIZE A N B` of white noise N in float64, with A and B of the condition number."""
    generator = torch.Generator().manual_seed(0)
    m, n = SHAPE
    noise = torch.randn(REFRESHES, m, n, generator=generator, dtype=torch.float64)
    sides = []
    for d in SHAPE:
        basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        spectrum = torch.logspace(0, -float(torch.log10(torch.tensor(condition))), d, dtype=torch.float64)
        sides.append(basis * spectrum @ basis.T)
    return list(sides[0] @ noise @ sides[1] * SIZE)


def track(method: str, grads: list[Tensor], precision: Precision, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Left root after all refreshes, the direction of the last gradient at `precision`, and the smallest eigenvalue."""
    chosen, options = METHODS[method], Options(lr=0.0, matmul_precision=precision)
    state = chosen.initial(1, SHAPE, ("full", "full"), dtype=dtype)
    for i, grad in enumerate(grads):
        refresh_blocks(chosen, [Blocks(state, grad[None].to(dtype), slice(None))], options, chosen.refresh_at(i, 1))
    found = chosen.direction(state, grads[-1][None].to(dtype), precision)
    spectra = [torch.linalg.eigvalsh(state[side].double()) for side in ("left", "right")]
    smallest = torch.stack([(values[..., 0] / values[..., -1]).min() for values in spectra]).min()
    return state["left"].double(), found.double(), smallest


def compare(method: str, condition: float) -> list[tuple[str, float, float, float]]:
    """For each precision: relative error of the left root, of the direction, smallest ÷ largest eigenvalue."""
    grads = gradients(condition)
    root, found, _ = track(method, grads, None, torch.float64)
    rows: list[tuple[str, float, float, float]] = []
    for name, (precision, products) in PRECISIONS.items():
        with products():
            near_root, near, smallest = track(method, grads, precision, torch.float32)
        rows.append((name, _error(near_root, root), _error(near, found), float(smallest)))
    return rows


def _error(near: Tensor, exact: Tensor) -> float:
    return float((near - exact).norm() / exact.norm())


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    print(environment(torch.device("cpu")))
    print(f"\n{REFRESHES} refreshes of a {SHAPE[0]} × {SHAPE[1]} block\n")
    print("| method | condition a side | precision | error of `L` | error of `L G R` | smallest ÷ largest eigenvalue |")
    print("|---|---|---|---|---|---|")
    for method in ("whitening", "congruence", "binomial"):
        for condition in (1e1, 1e2, 1e4):
            for name, root, found, smallest in compare(method, condition):
                print(f"| {method} | {condition:.0e} | {name} | {root:.1e} | {found:.1e} | {smallest:.1e} |")


if __name__ == "__main__":
    main()
