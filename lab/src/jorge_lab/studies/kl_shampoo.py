"""How near `whitening` is to KL-Shampoo by `eigh`: `python -m jorge_lab.studies.kl_shampoo [--damping X]`.

Prints a Markdown table over gradients `A^(1/2) Z B^(1/2)` of white noise Z, whose roots are known: they are `A^(-1/2)`
and `B^(-1/2)`. All is in float64 and with the same damping. Beside :class:`jorge.methods.kl_shampoo.KLShampoo`, the
oracle of whitening, stands KL-Shampoo as its paper has it. How near whitening is to its oracle while a task is trained
is what `jorge ablate error` says.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from jorge.methods import METHODS
from jorge.methods.kl_shampoo import KLShampoo
from jorge.options import Options
from jorge.stacking import Blocks, refresh_blocks
from jorge.trace import Trace
from jorge_lab.runs.environment import environment
from jorge_lab.studies.approximation import along, distance

SHAPE, REFRESHES = (48, 64), (3, 10, 30, 100, 300)
CONDITIONS = (1e1, 1e2, 1e3, 1e4, 1e5, 1e6)
SIDES = ("left", "right")


class Published(KLShampoo):
    """KL-Shampoo of its paper (Lin et al., arXiv 2509.03378): a gradient counts by its size, and by β2 alone."""

    def _energy(self, inverse: Tensor, x: Tensor, grad: Tensor) -> float:
        """n."""
        return float(grad.shape[1])


@dataclass(frozen=True)
class Row:
    """What is found after some refreshes.

    Args:
        refreshes: how many.
        error: relative Frobenius distance of whitening's roots to its oracle's after the best scaling, the larger side.
        direction: cosine of `L G R` of the newest gradient, whitening's and its oracle's.
        published: the same, whitening's and that of KL-Shampoo as published.
        truth: the same, whitening's and that of the true roots.
        oracle_truth: the same, its oracle's and that of the true roots.
    """

    refreshes: int
    error: float
    direction: float
    published: float
    truth: float
    oracle_truth: float


def factor(d: int, condition: float, generator: torch.Generator) -> Tensor:
    """A symmetric matrix with eigenvalues from 1 down to 1/condition, evenly spread by their logarithms, `[d, d]`."""
    basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    found: Tensor = basis * torch.logspace(0, -math.log10(condition), d, dtype=torch.float64) @ basis.mT
    return found


def compare(condition: float, damping: float) -> Iterator[Row]:
    """A row for each of :data:`REFRESHES`, with factors of this condition number and the damping of the gradients."""
    generator = torch.Generator().manual_seed(0)
    method, options, device = METHODS["whitening"], Options(lr=0.0, damping=damping), torch.device("cpu")
    factors = {side: factor(d, condition, generator) for side, d in zip(SIDES, SHAPE, strict=True)}
    truth = {side: power(a, -0.5) for side, a in factors.items()}
    scales = {side: power(a, 0.5) for side, a in factors.items()}
    state = method.initial(1, SHAPE, ("full", "full"), dtype=torch.float64)
    oracle = KLShampoo(SHAPE, device, damping=damping)
    published = Published(SHAPE, device, damping=damping)
    for number in range(max(REFRESHES)):
        grad = along(scales, torch.randn(*SHAPE, generator=generator, dtype=torch.float64))
        refresh, trace = method.refresh_at(number, 1), Trace()
        refresh_blocks(method, [Blocks(state, grad[None], slice(None))], options, refresh, trace)
        oracle.refresh(grad, refresh, {side: float(share) for side, share in trace.refreshes[0].shares.items()})
        share = max(1 - options.preconditioner_beta2, 1 / (number + 2))  # 1 would leave singular factors
        published.refresh(grad, refresh, dict.fromkeys(SIDES, share))
        if number + 1 in REFRESHES:
            ours, exact = {side: state[side][0] for side in SIDES}, oracle.roots()
            direction, wanted = along(ours, grad), along(exact, grad)
            yield Row(
                refreshes=number + 1,
                error=max(distance(ours[side], exact[side])[0] for side in SIDES),
                direction=distance(direction, wanted)[1],
                published=distance(direction, along(published.roots(), grad))[1],
                truth=distance(direction, along(truth, grad))[1],
                oracle_truth=distance(wanted, along(truth, grad))[1],
            )


def power(factor: Tensor, exponent: float) -> Tensor:
    """Of a symmetric positive definite matrix, by its eigenvalues."""
    values, vectors = torch.linalg.eigh(factor)
    found: Tensor = (vectors * values**exponent) @ vectors.mT
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--damping", type=float, default=Options(lr=0.0).damping, help="default: the optimizer's")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(environment(torch.device("cpu")))
    print(
        f"\nA {SHAPE[0]} × {SHAPE[1]} block, damping {args.damping:g}; cosines are of `L G R` of the newest gradient\n"
    )
    heads = ("whitening's roots, error to the oracle's", "cosine to the oracle", "to KL-Shampoo as published")
    print(f"| condition of A and B | refreshes | {' | '.join(heads)} | to the truth | the oracle to the truth |")
    print("|---|---|---|---|---|---|---|")
    for condition in CONDITIONS:
        for row in compare(condition, args.damping):
            cosines = (row.direction, row.published, row.truth, row.oracle_truth)
            cells = [f"{condition:.0e}", str(row.refreshes), f"{row.error:.3f}", *(f"{x:.4f}" for x in cosines)]
            print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
