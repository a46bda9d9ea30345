"""Steps that are not taken, as a gradient is not finite: counted on the device, where that is seen, or refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jorge.options import Group
from jorge.routing import COMPUTE_DTYPES
from jorge.validation import name_of, some


@dataclass(frozen=True)
class Skips:
    """Steps that changed nothing but the count of steps, because a gradient was not finite.

    Args:
        total: since the optimizer was made, of the device that has the most.
        in_a_row: the last ones, likewise; 0 where the last step was taken.
    """

    total: int
    in_a_row: int


#: On CUDA the counts are asked for at every so many steps.
_EVERY = 16


class Mirror:
    """The counts of a CUDA device as they were some steps ago, in the host's memory: nobody waits for them."""

    def __init__(self) -> None:
        self._held = torch.zeros(2, dtype=torch.int64, pin_memory=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._calls = 0
        self.last = 0

    def renew(self, counts: Tensor) -> None:
        """Read what has arrived, and ask for what is there now, every now and then."""
        self._calls += 1
        if self._calls % _EVERY == 1:
            first = self._calls == 1
            if not first and self._arrived():
                self.last = self._held.tolist()[1]
            if first or self._arrived():
                self._held.copy_(counts, non_blocking=True)
                self._event.record(torch.cuda.current_stream(counts.device))

    def _arrived(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]


class SkipCounter:
    """Counts on each device the steps that are not taken there, without waiting for it."""

    def __init__(self) -> None:
        self._counts: dict[torch.device, Tensor] = {}
        self._mirrors: dict[torch.device, Mirror] = {}

    def count(self, finite: Mapping[torch.device, Tensor], *, frozen: bool = False) -> None:
        """Take in a step: for each device whether its gradients were finite, a 0-dim boolean.

        Args:
            finite: the flags.
            frozen: whether the step is being captured in a CUDA graph, which must not ask for counts.
        """
        for device, flag in finite.items():
            if device not in self._counts:
                with torch.inference_mode(False):
                    self._counts[device] = torch.zeros(2, dtype=torch.int64, device=device)
            counts, skipped = self._counts[device], flag.logical_not()
            counts.add_(skipped)
            counts[1:].mul_(skipped)
            if device.type == "cuda" and not frozen:
                self._mirrors.setdefault(device, Mirror()).renew(counts)

    def check(self, limits: Sequence[int | None], groups: Sequence[Group]) -> None:
        """Refuse to go on where too many steps in a row were left out, as far as the host knows without waiting.

        Raises:
            RuntimeError: with their number, and the parameters whose gradients or weights are not finite.
        """
        given = [limit for limit in limits if limit is not None]
        if not given:
            return
        # A list of numbers on a CPU is read, not waited for.
        in_a_row = [counts.tolist()[1] for device, counts in self._counts.items() if device.type == "cpu"]
        if max([*in_a_row, *(mirror.last for mirror in self._mirrors.values())], default=0) < min(given):
            return
        for device, mirror in self._mirrors.items():  # what was seen may be over by now; an error may wait
            mirror.last = self._counts[device].tolist()[1]
        most = self.read().in_a_row
        if most < min(given):
            return
        params = [p for group in groups for p in group["params"]]
        bad = [name_of(p, groups) for p in params if not p.detach().isfinite().all()]
        what = f"the weights of {some(bad)} are not finite" if bad else f"the gradients of {some(_bad(params, groups))}"
        raise RuntimeError(
            f"{most} steps in a row were left out, as gradients were not finite: {what}. Load a checkpoint from "
            "before, and lower the lr, clip gradients or look for overflow; max_consecutive_skips=None sets no limit"
        )

    def begin_anew(self) -> None:
        """Forget how many steps in a row were left out: another state has been loaded."""
        for counts in self._counts.values():
            counts[1:].zero_()
        for mirror in self._mirrors.values():
            mirror.last = 0

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
        bad = _bad([p for group in groups for p in group["params"] if p.device == device], groups)
        raise RuntimeError(
            f"not finite, or longer than 1.8e19, {'is the gradient' if len(bad) == 1 else 'are the gradients'} of "
            f"{', '.join(bad)}: no weight has moved. Lower the lr, clip gradients or look for overflow; "
            "nonfinite='skip' leaves such steps out and counts them"
        )


def _bad(params: Sequence[Tensor], groups: Sequence[Group]) -> list[str]:
    """The names of those whose gradients are not finite; waits for the device."""
    found = [(p, p.grad) for p in params if p.grad is not None]
    norms = [torch.linalg.vector_norm(grad, dtype=COMPUTE_DTYPES[grad.dtype]) for _, grad in found]
    return [name_of(p, groups) for (p, _), norm in zip(found, norms, strict=True) if norm - norm != 0]
