"""The estimate: what each parameter gets and costs, and what that is against the model's own work."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

from jorge import schatten
from jorge.arrange import SMALLEST_WORKSPACE_CUDA
from jorge.blocks import Side
from jorge.checks import check, check_known
from jorge.cost import rivals as others
from jorge.cost import table
from jorge.cost.meter import UNCUT, Rehearsal, early_refreshes, mean_bytes, mean_launches, settled_refreshes
from jorge.cost.model import model_flops as count_model
from jorge.cost.rivals import Rival, eigh_flops
from jorge.cost.weights import Weight, weights_of
from jorge.methods import METHODS
from jorge.options import CUDA_BLOCK_SIZE, DEFAULTS, BlockSize, Options
from jorge.plan import PlanRow, plan_row
from jorge.routing import COMPUTE_DTYPES, has_schatten_length, route_by

#: FLOPs in the time of one byte: float32 without tensor cores on an H100 (67 TFLOP/s ÷ 3.35 TB/s, its data sheet).
BALANCE = 20.0
#: The same in TF32, and the bytes in the time of a kernel: 1.0 µs in a graph at 3.0 TB/s (`docs/notebook/gpu.md`).
GPU_BALANCE, GPU_LAUNCH = 120.0, 3e6


@dataclass(frozen=True)
class Row:
    """One parameter: its plan, and the FLOPs of its blocks in all, as torch's FLOP counter counts.

    Args:
        plan: shape, blocks, sides and state bytes.
        direction_flops: every step.
        refresh_flops: one refresh later in training, the mean over a period of the damping.
        early_refresh_flops: one of the first ten refreshes, of which some repeat the step; their mean.
        eigh_flops: nominal, of the eigendecompositions of one refresh of `method="exact"`; not in the others.
    """

    plan: PlanRow
    direction_flops: int
    refresh_flops: float
    early_refresh_flops: float
    eigh_flops: int

    def flops_per_step(self, interval: int) -> float:
        """Mean FLOPs of a step at a refresh every `interval` steps, without the nominal ones."""
        return self.direction_flops + self.refresh_flops / interval


@dataclass(frozen=True)
class Launches:
    """Operators that one step of the whole model dispatches, views and bare allocations left out.

    A `foreach` operator counts once, though a device may launch several kernels for it.

    Args:
        plain: a step without a refresh; with `stagger`, the step of an interval that has the fewest.
        refresh: one that refreshes, without the damping of every seventh; with `stagger`, that which has the most.
        early: the most of the first ten refreshes.
    """

    plain: int
    refresh: int
    early: int


@dataclass(frozen=True)
class Estimate:
    """The cost of :class:`jorge.Jorge` for a model; `str()` is a table, :meth:`to_dict` the same as data.

    Args:
        rows: the parameters, in order.
        interval: steps between refreshes.
        block_size: largest side of a block, or `"auto"`, or `None` for whole matrices.
        method: how the preconditioners are tracked.
        grafting: `"sgd"` or `"adam"`: the overhead is that over training with SGD or AdamW.
        launches: of a step.
        bytes_per_step: moved by elementwise work, a mean over the interval.
        early_bytes_per_step: the same, a mean over the first ten refreshes.
        model_flops: forward and backward pass of the model, or `None` where not known.
        balance: FLOPs that the device does in the time in which it moves one byte.
        model_speed: how many times faster it does the model's FLOPs than the optimizer's.
        launch: bytes that it moves in the time of a launch.
        launches_per_step: a mean over the interval.
        early_launches_per_step: the same, a mean over the first ten refreshes.
        rivals: SGD, AdamW, Shampoo, SOAP and Muon.
    """

    rows: tuple[Row, ...]
    interval: int
    block_size: BlockSize
    method: str
    grafting: str
    launches: Launches
    bytes_per_step: float
    early_bytes_per_step: float
    model_flops: float | None
    balance: float
    model_speed: float
    launch: float
    launches_per_step: float
    early_launches_per_step: float
    rivals: tuple[Rival, ...] = field(repr=False)

    @property
    def state_bytes(self) -> int:
        """Bytes of optimizer state, to the byte."""
        return sum(row.plan.state_bytes for row in self.rows)

    @property
    def direction_flops(self) -> int:
        """FLOPs of the directions in each step."""
        return sum(row.direction_flops for row in self.rows)

    @property
    def refresh_flops(self) -> float:
        """FLOPs of one refresh of all preconditioners later in training."""
        return sum(row.refresh_flops for row in self.rows)

    @property
    def eigh_flops(self) -> int:
        """Nominal FLOPs of the eigendecompositions of one refresh, for `method="exact"`."""
        return sum(row.eigh_flops for row in self.rows)

    @property
    def flops_per_step(self) -> float:
        """Mean FLOPs of a step later in training, without the nominal ones."""
        return sum(row.flops_per_step(self.interval) for row in self.rows)

    @property
    def early_flops_per_step(self) -> float:
        """FLOPs of one of the first ten steps, which all refresh; without the nominal ones."""
        return self.direction_flops + sum(row.early_refresh_flops for row in self.rows)

    @property
    def overhead(self) -> float | None:
        """Predicted extra work over training with the baseline, later in training; `None` without model FLOPs."""
        moved = self.bytes_per_step + self.launch * self.launches_per_step
        return self._overhead(self.flops_per_step + self.eigh_flops / self.interval, moved)

    @property
    def early_overhead(self) -> float | None:
        """The same for one of the first ten steps."""
        moved = self.early_bytes_per_step + self.launch * self.early_launches_per_step
        return self._overhead(self.early_flops_per_step + self.eigh_flops, moved)

    def _overhead(self, work: float, moved_bytes: float) -> float | None:
        base = next(r for r in self.rivals if r.name == ("SGD" if self.grafting == "sgd" else "AdamW"))
        return overhead(work, moved_bytes, base, self.model_flops, self.balance, self.model_speed)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain numbers, strings, lists and dicts, for JSON."""
        return table.as_dict(self)

    def text(self, rows: int | None = None) -> str:
        """The table, with the `rows` parameters that cost most (default: all, in order)."""
        return table.estimate_table(self, rows)

    def __str__(self) -> str:
        return self.text()


def estimate(
    model_or_shapes: Any,
    *,
    sample_input: Any = None,
    loss: Callable[[Any], Tensor] | None = None,
    model_flops: float | None = None,
    balance: float | None = None,
    model_speed: float = 1.0,
    gpu: bool = False,
    **options: Any,
) -> Estimate:
    r"""Count what :class:`jorge.Jorge` will cost, without allocating weights or state.

    State bytes are what the optimizer allocates, FLOPs what torch's FLOP counter sees, launches what a step
    dispatches. The overhead is a prediction: with `work = FLOPs + balance · (bytes of elementwise operators + launch ·
    launches)`,

        (work − baseline's work) / (model FLOPs / model_speed + baseline's work)

    where the baseline is torch's SGD with momentum, or AdamW for `grafting="adam"`. The model's own elementwise work
    is left out, so for a model that is bound by memory the prediction is too high.

    Args:
        model_or_shapes: a module on any device (parameters that require a gradient, tied ones once), an iterable of
            parameters or `(name, tensor)` pairs, or a mapping of names to tensors or shapes, such as a state dict.
        sample_input: a whole batch for a module: a tensor, a tuple of arguments or a dict of keyword arguments,
            which may be meta tensors. Its forward and backward pass are counted.
        loss: makes a scalar of the module's output. Default: the sum of its floating-point tensors.
        model_flops: FLOPs of forward and backward pass, instead of `sample_input`.
        balance: FLOPs that the device does in the time in which it moves one byte, for the optimizer's arithmetic:
            about 10 for a CPU, 120 for an H100 in TF32, in which Jorge multiplies there, 20 in float32. Default 20,
            or 120 with `gpu`.
        model_speed: how many times faster the device does the model's FLOPs than the optimizer's: above 1 where the
            model runs in lower precision. Default 1.
        gpu: count the step that is taken on CUDA: with blocks of 256 for `"auto"`, and with the temporary memory that a
            step has there. A launch then counts as 3 MB moved, as an H100 needs 1 µs for a kernel of a graph
            (`docs/notebook/gpu.md`); elsewhere as none. Those of the others, which are fused, count as none.
        options: of :class:`jorge.Jorge`, with its defaults: method, grafting, interval, block_size, max_dim, ….

    Raises:
        TypeError: unknown options; parameters that cannot be optimized; a sample input without a module.
        ValueError: values out of range; nothing to optimize.
        ModelFlopsError: the module cannot run on meta tensors.

    >>> import torch
    >>> from jorge.cost import estimate
    >>> cost = estimate(torch.nn.Linear(8, 4), sample_input=torch.empty(1000, 8), interval=5)
    >>> cost.state_bytes, cost.direction_flops, cost.model_flops
    (680, 768, 128000)
    >>> [(row.plan.name, row.direction_flops) for row in cost.rows]
    [('weight', 768), ('bias', 0)]
    """
    chosen = checked(options)
    balance = (GPU_BALANCE if gpu else BALANCE) if balance is None else balance
    positive("balance", balance, least=0)
    positive("model_speed", model_speed)
    flops = model_work(model_or_shapes, sample_input, loss, model_flops)
    weights = weights_of(model_or_shapes)
    if gpu:
        chosen = on_cuda(weights, chosen)
    rehearsal = Rehearsal(weights, chosen)
    steps, early = rehearsal.interval(), rehearsal.early()
    found = [
        others.sgd(weights),
        others.adamw(weights),
        shampoo(weights, chosen),
        others.soap(weights, interval=chosen.interval),
        others.muon(weights),
    ]
    base = baseline(weights, chosen.grafting)
    extra = [overhead(r.work, r.bytes_per_step, base, flops, balance, model_speed) for r in found]
    return Estimate(
        rows=tuple(count_row(w, chosen) for w in weights),
        interval=chosen.interval,
        block_size=chosen.block_size,
        method=chosen.method,
        grafting=chosen.grafting,
        launches=Launches(
            min(s.launches for s in steps), max(s.launches for s in steps), max(s.launches for s in early)
        ),
        bytes_per_step=mean_bytes(steps),
        early_bytes_per_step=mean_bytes(early),
        model_flops=flops,
        balance=balance,
        model_speed=model_speed,
        launch=GPU_LAUNCH if gpu else 0.0,
        launches_per_step=mean_launches(steps),
        early_launches_per_step=mean_launches(early),
        rivals=tuple(replace(r, overhead=part) for r, part in zip(found, extra, strict=True)),
    )


def on_cuda(weights: Sequence[Weight], options: Options) -> Options:
    """The options by which a step is arranged anywhere as it is on CUDA."""
    total = sum(w.tensor.numel() * COMPUTE_DTYPES[w.dtype].itemsize for w in weights)
    least = SMALLEST_WORKSPACE_CUDA / max(1, total)
    return options.replace(
        block_size=CUDA_BLOCK_SIZE if options.block_size == "auto" else options.block_size,
        workspace=options.workspace and max(options.workspace, least),
    )


def checked(given: Mapping[str, Any]) -> Options:
    """All options of the optimizer: its defaults, and over them what was given.

    Raises:
        TypeError: unknown options.
        ValueError: values out of range.
    """
    values = {**DEFAULTS, **given}
    check_known(given, "the options of the estimate")
    check(values, "the options of the estimate")
    return Options.of(values)


def positive(name: str, value: float, least: float | None = None) -> None:
    """Refuse a number that is not above 0, or below `least`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value == value
    if not (number and value < float("inf") and (value > 0 if least is None else value >= least)):
        wanted = "above 0" if least is None else f"of at least {least:g}"
        raise ValueError(f"{name} must be a finite number {wanted}, got {value!r}")


def model_work(source: Any, sample: Any, loss: Callable[[Any], Tensor] | None, given: float | None) -> float | None:
    """The model's FLOPs: as given, or counted on the sample, or `None`."""
    if given is not None:
        if sample is not None:
            raise TypeError("give sample_input or model_flops, not both")
        positive("model_flops", given)
        return given
    if sample is None:
        return None
    if not isinstance(source, nn.Module):
        raise TypeError("sample_input needs a module to run: pass the model, or model_flops instead")
    return count_model(source, sample, loss=loss)


def overhead(
    work: float, moved_bytes: float, baseline: Rival, model: float | None, balance: float, model_speed: float
) -> float | None:
    """Work beyond the baseline's, as a part of the model's and the baseline's: the formula of :func:`estimate`."""
    if model is None:
        return None
    base = baseline.work + balance * baseline.bytes_per_step
    return (work + balance * moved_bytes - base) / (model / model_speed + base)


def baseline(weights: Sequence[Weight], grafting: str) -> Rival:
    """The optimizer that the overhead is measured against: the one that the grafting follows."""
    return others.sgd(weights) if grafting == "sgd" else others.adamw(weights)


def shampoo(weights: Sequence[Weight], options: Options) -> Rival:
    """Shampoo (arXiv 1802.09568), as `method="exact"`: with these blocks and grafting, roots by `eigh`."""
    options = options.replace(
        method="exact",
        graft_norm="frobenius",
        adapt_variance=False,
        stagger=False,
        workspace=UNCUT,
        capturable=False,
        cuda_graphs=False,
    )
    rows = [count_row(w, options) for w in weights]
    return Rival(
        name="Shampoo",
        state_bytes=sum(row.plan.state_bytes for row in rows),
        flops_per_step=sum(row.flops_per_step(options.interval) for row in rows),
        nominal_flops_per_step=sum(row.eigh_flops for row in rows) / options.interval,
        bytes_per_step=mean_bytes(Rehearsal(weights, options).interval()),
        overhead=None,
        note='method="exact": these blocks and grafting, eigh at the interval',
    )


def count_row(weight: Weight, options: Options) -> Row:
    """State and FLOPs of one parameter under the options of its group."""
    plan = plan_row(weight.name, weight.shape, weight.dtype, options)
    if plan.left is None or plan.right is None:
        return Row(plan, 0, 0.0, 0.0, 0)
    sides, method = (plan.left, plan.right), METHODS[options.method]
    measured = has_schatten_length(route_by(weight.shape, options).part, sides, options)

    def refresh(numbers: range) -> float:
        return sum(
            count * (_mean_refresh((m, n), sides, options, numbers) + measured * schatten.flops((m, n)))
            for count, m, n in plan.blocks
        )

    return Row(
        plan,
        direction_flops=sum(count * method.direction_flops((m, n), sides) for count, m, n in plan.blocks),
        refresh_flops=refresh(settled_refreshes()),
        early_refresh_flops=refresh(early_refreshes()),
        eigh_flops=sum(
            count * eigh_flops(d) for count, m, n in plan.blocks for d in method.decompositions((m, n), sides)
        ),
    )


@lru_cache(maxsize=4096)
def _mean_refresh(shape: tuple[int, int], sides: tuple[Side, Side], options: Options, numbers: range) -> float:
    """FLOPs of a refresh of one block, a mean over some refreshes."""
    method = METHODS[options.method]
    total = sum(method.refresh_flops(shape, sides, options, method.refresh_at(k, 1)) for k in numbers)
    return total / len(numbers)
