"""Steps that are not taken, as a gradient is not finite: counted on the device, where that is seen, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jorge.options import Group
from jorge.routing import COMPUTE_DTYPES
from jorge.validation import name_of


@dataclass(frozen=True)
class Skips:
    """Steps that changed nothing but the count of steps, because a gradient was not finite.

    Args:
        total: since the optimizer was made, of the device that has the most.
        in_a_row: the last ones, likewise; 0 where the last step was taken.
    """

    total: int
    in_a_row: int


class SkipCounter:
    """Counts on each device the steps that are not taken there, without waiting for it."""

    def __init__(self) -> None:
        self._counts: dict[torch.device, Tensor] = {}

    def count(self, finite: Mapping[torch.device, Tensor]) -> None:
        """Take in a step: for each device whether its gradients were finite, a 0-dim boolean."""
        for device, flag in finite.items():
            if device not in self._counts:
                with torch.inference_mode(False):
                    self._counts[device] = torch.zeros(2, dtype=torch.int64, device=device)
            counts, skipped = self._counts[device], flag.logical_not()
            counts.add_(skipped)
            counts[1:].mul_(skipped)

    def covers(self, finite: Mapping[torch.device, Tensor]) -> bool:
        """Whether it has counted on these devices before, so that a step makes nothing new."""
        return finite.keys() <= self._counts.keys()

    def counts(self) -> dict[torch.device, Tensor]:
        """On each device the steps that were left out there, in all and in a row, `[2]`."""
        return dict(self._counts)

    def read(self) -> Skips:
        """What was counted; waits for the devices."""
        pairs = [counts.tolist() for counts in self._counts.values()]
        return Skips(*map(max, zip(*pairs, strict=True))) if pairs else Skips(0, 0)


def refuse_not_finite(
    finite: Mapping[torch.device, Tensor], asked: Sequence[torch.device], groups: Sequence[Group]
) -> None:
    """Refuse a step with a gradient that is not finite, on devices where that is asked for; waits for these.

    Raises:
        RuntimeError: with the parameters' names.
    """
    for device in dict.fromkeys(asked):
        if finite[device]:
            continue
        params = [p for group in groups for p in group["params"] if p.grad is not None and p.device == device]
        norms = [torch.linalg.vector_norm(p.grad, dtype=COMPUTE_DTYPES[p.grad.dtype]) for p in params]
        bad = [name_of(p, groups) for p, norm in zip(params, norms, strict=True) if norm - norm != 0]
        raise RuntimeError(
            f"not finite, or longer than 1.8e19, {'is the gradient' if len(bad) == 1 else 'are the gradients'} of "
            f"{', '.join(bad)}: no weight has moved. Lower the lr, clip gradients or look for overflow; "
            "nonfinite='skip' leaves such steps out and counts them"
        )
