"""The interval and block size that keep the predicted overhead under a budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from jorge.cost.estimating import (
    BALANCE,
    GPU_BALANCE,
    GPU_LAUNCH,
    baseline,
    checked,
    count_row,
    model_work,
    on_cuda,
    overhead,
    positive,
)
from jorge.cost.meter import UNCUT, Rehearsal, StepCount, mean_bytes, mean_launches, settled_refreshes
from jorge.cost.weights import Weight, weights_of
from jorge.methods import METHODS
from jorge.options import BlockSize, Options

#: Largest first; "auto" cuts sides above 256 more finely than any other.
BLOCK_SIZES: tuple[BlockSize, ...] = (1024, 512, 256, "auto")
INTERVALS = (1, 2, 5, 10, 20, 50)


@dataclass(frozen=True)
class Candidate:
    """A block size and an interval, with their predicted overhead and state."""

    block_size: BlockSize
    interval: int
    overhead: float
    state_bytes: int


@dataclass(frozen=True)
class Suggestion:
    """What to choose under a budget; `str()` says it in a sentence.

    Args:
        budget: the largest overhead wanted, as a fraction.
        chosen: the choice; where none keeps the budget, the one that comes nearest.
        within: whether it keeps the budget.
        candidates: all that were looked at.
    """

    budget: float
    chosen: Candidate
    within: bool
    candidates: tuple[Candidate, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain data."""
        return asdict(self)

    def __str__(self) -> str:
        c = self.chosen
        what = f"block_size={c.block_size!r}, interval={c.interval}"
        budget, found = f"{100 * self.budget:.3g} %", f"{what}, predicted overhead {100 * c.overhead:.3g} %"
        if self.within:
            return f"for a budget of {budget}: {found}"
        return (
            f"none of the block sizes and intervals keeps the overhead at {budget}; nearest: {found}. "
            "A larger batch lowers it"
        )


def suggest(
    model_or_shapes: Any,
    budget: float = 0.05,
    *,
    sample_input: Any = None,
    loss: Callable[[Any], Tensor] | None = None,
    model_flops: float | None = None,
    balance: float | None = None,
    model_speed: float = 1.0,
    gpu: bool = False,
    block_sizes: Sequence[BlockSize] = BLOCK_SIZES,
    intervals: Sequence[int] = INTERVALS,
    **options: Any,
) -> Suggestion:
    """Choose block size and interval so that the predicted overhead keeps a budget.

    The smallest interval that keeps it is taken, and at that interval the largest blocks. Rare refreshes and small
    blocks both cost steps to the target, how many depends on the task (`docs/notebook/defaults.md`). Where two block
    sizes cost the same, `"auto"`, the default, is preferred. The overhead is that of a training's later part: the gap
    between refreshes grows to the interval, with the default `warmup_refreshes` in 200 steps to 5, 900 to 10, 3,800 to
    20.

    Args:
        model_or_shapes: this and what follows but for `budget` and the candidates is as for
            :func:`~jorge.cost.estimate`.
        budget: the largest overhead, as a fraction: 0.05 is 5 %. Default 0.05.
        block_sizes: candidates. Default 1024, 512, 256, "auto".
        intervals: candidates. Default 1, 2, 5, 10, 20, 50.
        sample_input: the model's FLOPs must be known, by this or by `model_flops`.
        loss: of its output.
        model_flops: of a forward and backward pass.
        balance: FLOPs in the time of a byte.
        model_speed: the model's FLOPs a second over the optimizer's.
        options: of :class:`jorge.Jorge`, but for `block_size` and `interval`.

    Raises:
        TypeError: neither `sample_input` nor `model_flops`; `block_size` or `interval` among the options; others as
            for `estimate`.
        ValueError, ModelFlopsError: as for `estimate`.

    >>> from jorge.cost import suggest
    >>> print(suggest({"weight": (512, 512)}, 0.05, model_flops=2e11))
    for a budget of 5 %: block_size=1024, interval=1, predicted overhead 2.55 %
    """
    positive("budget", budget)
    if not block_sizes or not intervals:
        raise ValueError("block_sizes and intervals must name at least one candidate each")
    for name in ("block_size", "interval"):
        if name in options:
            raise TypeError(f"{name} is what is suggested: give candidates as {name}s=[…]")
    balance = (GPU_BALANCE if gpu else BALANCE) if balance is None else balance
    positive("balance", balance, least=0)
    positive("model_speed", model_speed)
    model = model_work(model_or_shapes, sample_input, loss, model_flops)
    if model is None:
        raise TypeError("a budget is a fraction of the model's work: give sample_input or model_flops")
    weights = weights_of(model_or_shapes)
    found = []
    for block_size in block_sizes:
        counted: dict[Any, tuple[StepCount, ...]] = {}
        for interval in intervals:
            chosen = checked({**options, "block_size": block_size, "interval": interval})
            chosen = on_cuda(weights, chosen) if gpu else chosen
            rows = [count_row(w, chosen) for w in weights]
            work = sum(row.flops_per_step(interval) + row.eigh_flops / interval for row in rows)
            steps = _steps(weights, chosen, counted)
            moved = mean_bytes(steps) + mean_launches(steps) * (GPU_LAUNCH if gpu else 0)
            extra = overhead(work, moved, baseline(weights, chosen.grafting), model, balance, model_speed)
            assert extra is not None
            found.append(Candidate(block_size, interval, extra, sum(row.plan.state_bytes for row in rows)))
    order = {size: i for i, size in enumerate(block_sizes)}
    kept = sorted((c for c in found if c.overhead <= budget), key=lambda c: (c.interval, order[c.block_size]))
    best = kept[0] if kept else min(found, key=lambda c: c.overhead)
    same = [c for c in found if c.block_size == "auto" and c.interval == best.interval]
    if same and (same[0].overhead, same[0].state_bytes) == (best.overhead, best.state_bytes):
        best = same[0]
    return Suggestion(budget, best, bool(kept), tuple(found))


def _steps(
    weights: Sequence[Weight], options: Options, counted: dict[Any, tuple[StepCount, ...]]
) -> Sequence[StepCount]:
    """The steps of an interval; it counts only through what its refreshes do, so most are counted once."""
    interval, method = options.interval, METHODS[options.method]
    kinds = tuple(method.refresh_at(k, interval) for k in settled_refreshes()) if interval > 1 else ()
    if kinds not in counted:
        counted[kinds] = Rehearsal(weights, options.replace(stagger=False, workspace=UNCUT)).interval()
    plain, refresh = counted[kinds][0], counted[kinds][-1]
    return (plain,) * (interval - 1) + (refresh,)
