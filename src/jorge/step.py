"""One step, for all parameters at once: what :mod:`jorge.reference` defines, in the same order.

G ← the gradients                     zero where one on the device is not finite, and then nothing moves
L, R ← refreshed by G                 at the steps that the schedule names
M ← μ M + (1−μ) G                     momentum, which is Adam's own, or SGD's: M ← μ M + G
N ← M                                 or, with Nesterov momentum, what looks ahead of it
ℓ ← ‖the step of SGD or Adam‖         the graft: how far to go; a vector takes that step itself
D ← L N R                             the direction; a vector has none
A ← D / (r cᵀ)^(1/4)                  of linear maps, with Adam's graft: r and c are variances of rows and columns of D
U ← ℓ · A / ‖A‖                       as long as the graft: in the Frobenius norm, or so linear maps in a Schatten norm
W ← W − lr·λ·W − lr·U
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor

from jorge import grafting, schatten, variance
from jorge.allocation import SetState
from jorge.arrange import WorkSet
from jorge.exchange import Exchange
from jorge.grafting import Mask
from jorge.inputs import StepInputs, inputs_of
from jorge.methods import METHODS, State
from jorge.methods.products import precision_scope
from jorge.options import Options
from jorge.parameters import BITS, clear, gather_gradients, move
from jorge.routing import COMPUTE_DTYPES
from jorge.schedule import Schedule
from jorge.stacking import Blocks, refresh_blocks, stacked, unstack
from jorge.store import GroupState
from jorge.trace import Trace


def without_autocast(states: Sequence[GroupState]) -> ExitStack:
    """Let the arithmetic have the dtypes of its operands, also where the caller's loop is inside `torch.autocast`."""
    scopes = ExitStack()
    for state in states:
        kind = state.device.type
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            scopes.enter_context(torch.autocast(kind, enabled=False))
    return scopes


def finite_on(states: Sequence[GroupState]) -> dict[torch.device, Tensor]:
    """For each device a 0-dim boolean: whether all gradients there are finite, and no longer than 1.8e19."""
    alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for state in states:
        for dtype, grads in state.alike.items():
            alike[state.device, dtype] += grads
    flags: dict[torch.device, Tensor] = {}
    for (device, dtype), grads in alike.items():
        longest = torch.stack(torch._foreach_norm(grads, 2, dtype=COMPUTE_DTYPES[dtype])).amax()
        flag = (longest - longest).eq(0)  # the difference is NaN where it is not finite
        flags[device] = flags[device] & flag if device in flags else flag
    return flags


def take_step(state: GroupState, options: Options, finite: Tensor, trace: Trace | None) -> None:
    """One step of a param group's parameters on one device; none of them moves where `finite` is false.

    What raises in a work set leaves its `step` as it was. In its refreshes, such as a decomposition that does not
    converge, it leaves all else as it was, but for preconditioners that may have been refreshed; after them, such as
    for lack of memory, momenta and averages may have taken the gradients in, and weights, which are written last, may
    have decayed. The work sets before it have taken their step.
    """
    schedule = Schedule(options.interval, options.warmup_refreshes, options.stagger)
    numbers = options if state.compiled is None else state.compiled.scalars.options(options)
    if not state.exchange.alone:
        _take_steps_with_others(state, options, schedule, finite, trace)
        return
    for number, work in enumerate(state.work_sets):
        inputs = inputs_of(state, number, schedule, options, trace, state.compiled)
        if any(inputs.grads):
            run = step_work_set if state.compiled is None else state.compiled.step(number, step_work_set)
            run(work, state.tensors[number], inputs, finite, numbers, state.exchange, trace)
            state.commit(work)


def _take_steps_with_others(
    state: GroupState, options: Options, schedule: Schedule, finite: Tensor, trace: Trace | None
) -> None:
    """As :func:`take_step`; a work set's gradients are on their way to others while the one before is worked on."""
    found = [inputs_of(state, number, schedule, options, trace, None) for number in range(len(state.work_sets))]
    taking_part = [number for number, inputs in enumerate(found) if any(inputs.grads)]  # in all processes alike
    begun: Begun | None = None
    for i, number in enumerate(taking_part):
        now = begun or _begin(state, number, found, finite, options)
        begun = None
        if i + 1 < len(taking_part):
            after = taking_part[i + 1]
            begun = _begin(state, after, found, finite, options)
        work = state.work_sets[number]
        finish(work, state.tensors[number], found[number], now, finite, options, state.exchange, trace)
        state.commit(work)


def _begin(state: GroupState, number: int, found: Sequence[StepInputs], finite: Tensor, options: Options) -> Begun:
    work, inputs = state.work_sets[number], found[number]
    grads, kept = gathered(work, inputs, finite, options)
    return begin(work, state.tensors[number], inputs, grads, kept, options, state.exchange)


def step_work_set(
    work: WorkSet,
    tensors: SetState[Tensor],
    inputs: StepInputs,
    finite: Tensor,
    options: Options,
    exchange: Exchange,
    trace: Trace | None,
) -> None:
    """The step of a work set. It reads nothing that changes from step to step but its arguments, to be compiled.

    Args:
        work: what is worked on.
        tensors: its state.
        inputs: who takes part.
        finite: 0-dim boolean.
        options: of the param group; its numbers may be 0-dim tensors.
        exchange: who refreshes what.
        trace: told of what was seen.
    """
    begun = begin(work, tensors, inputs, *gathered(work, inputs, finite, options), options, exchange)
    finish(work, tensors, inputs, begun, finite, options, exchange, trace)


@dataclass
class Begun:
    """A work set whose step has begun.

    Args:
        grads: G of each shape group.
        aheads: N of each shape group of matrices, where others work on them.
        seen: G of what its blocks are cut from, for the refreshes; it may be on its way.
        cut: N of it, likewise, where others work on it.
        kept: as :func:`jorge.parameters.clear` has it.
    """

    grads: list[Tensor]
    aheads: list[Tensor]
    seen: list[Tensor]
    cut: list[Tensor]
    kept: Tensor


def gathered(work: WorkSet, inputs: StepInputs, finite: Tensor, options: Options) -> tuple[list[Tensor], Tensor]:
    """G of each shape group, and who keeps its bits, as :func:`jorge.parameters.clear` has it."""
    kept = finite.to(BITS[work.compute])
    return gather_gradients(work, inputs.grads, inputs.present, kept, maximize=options.maximize), kept


def begin(
    work: WorkSet,
    tensors: SetState[Tensor],
    inputs: StepInputs,
    grads: list[Tensor],
    kept: Tensor,
    options: Options,
    exchange: Exchange,
) -> Begun:
    """Send the gradients for a refresh to where they are worked on, and N where others do; `grads` as gathered."""
    matrices = grads[len(work.groups) - len(work.matrices) :]
    seen = exchange.to_owners(work, matrices) if any(inputs.scheduled) else []
    aheads = _look_ahead(work, tensors, matrices, options) if exchange.apart else []
    return Begun(grads, aheads, seen, exchange.to_owners(work, aheads) if aheads else [], kept)


def _look_ahead(work: WorkSet, tensors: SetState[Tensor], matrices: list[Tensor], options: Options) -> list[Tensor]:
    """N of each shape group of matrices, from the momentum as it was before this step."""
    if not matrices:
        return []
    name = grafting.buffer_names(options.grafting)[0]
    buffers = [each[name] for each in tensors.buffers[len(work.groups) - len(work.matrices) :]]
    return grafting.ahead(options.grafting, buffers, matrices, options.momentum, nesterov=options.nesterov)


def finish(
    work: WorkSet,
    tensors: SetState[Tensor],
    inputs: StepInputs,
    begun: Begun,
    finite: Tensor,
    options: Options,
    exchange: Exchange,
    trace: Trace | None,
) -> None:
    """The rest of :func:`step_work_set`."""
    vectors = len(work.groups) - len(work.matrices)
    grads, aheads, seen, cut, kept = begun.grads, begun.aheads, begun.seen, begun.cut, begun.kept
    begun.grads, begun.aheads, begun.seen, begun.cut = [], [], [], []  # so that they are freed as soon as they are used
    mask = Mask(finite.to(work.compute), inputs.masks)
    matrix_mask = Mask(mask.taken, inputs.masks[vectors:])  # of the matrices
    exchange.arrived(work)
    _refresh(work, tensors.stacks, inputs, seen, options, exchange, trace)
    del seen
    if not exchange.apart:  # only now, so that a refresh has the memory
        cut = aheads = _look_ahead(work, tensors, grads[vectors:], options)
    directions: list[Tensor] = []
    if exchange.apart and aheads:
        directions = _directions(work, tensors.stacks, cut, grads[vectors:], options, exchange)
    updates, adams, norms, lengths = _graft(work, tensors, grads, aheads, mask, options, exchange)
    del grads  # before the blocks of N are cut
    if updates:
        clear(updates, kept)
    if len(lengths):
        measured, precision = inputs.measured, options.precisions[1]
        exchange.arrived(work)
        grafts = schatten.quartics(work, measured, adams, norms, precision, exchange) if inputs.measures else []
        del adams  # of which no more is needed
        if not exchange.apart:
            directions = _directions(work, tensors.stacks, cut, aheads, options, exchange)
        del cut, aheads
        directions = _adapted(work, tensors, inputs, directions, mask.taken, options, exchange)
        norms = exchange.norms(work, directions)
        if inputs.measures:
            steps = schatten.quartics(work, measured, directions, norms, precision, exchange)
            schatten.remember(tensors.stacks, measured, grafts, steps, finite)
            tensors.scalars["schatten_scale"].copy_(schatten.scales(work, tensors.stacks, exchange))
        if any((stack.of or stack).measured for stack in work.stacks):
            lengths.mul_(tensors.scalars["schatten_scale"])
        whole = lengths
        if options.grafting == "sgd" and options.graft_limit is not None:
            history, moves = tensors.scalars["graft_length"], matrix_mask.each(directions)
            lengths = grafting.limited(whole, history, moves, options.graft_limit)
        ratios = grafting.ratios(norms, lengths) * matrix_mask.each(directions)
        if trace is not None:
            trace.stepped(
                params=tuple(inputs.all_matrices),
                finite=finite,
                lengths=lengths,
                limited=lengths < whole,
                ratios=ratios,
            )
        torch._foreach_mul_(directions, grafting.per_parameter(ratios, directions))
        updates += directions
    if trace is not None:
        trace.moving(updates)
    move(work, inputs.params, inputs.present, updates, mask.taken, options)


def _refresh(
    work: WorkSet,
    states: Sequence[State],
    inputs: StepInputs,
    cut: Sequence[Tensor],
    options: Options,
    exchange: Exchange,
    trace: Trace | None,
) -> None:
    """L and R: refresh what is scheduled, in place. What raises here has moved no weight, momentum or step.

    `cut` are the gradients of what the blocks are cut from.
    """
    _refresh_here(work, states, inputs, cut, options, trace)
    if not exchange.alone and any(inputs.scheduled):
        exchange.collect(work, states, inputs.scheduled)


def _refresh_here(
    work: WorkSet,
    states: Sequence[State],
    inputs: StepInputs,
    cut: Sequence[Tensor],
    options: Options,
    trace: Trace | None,
) -> None:
    """What of it is this process's. What was gathered for it is free again before the others' share is collected."""
    at, blocks = -1, None
    for batch in inputs.refreshes:
        some: list[Blocks] = []
        for number, where in batch.pieces:
            if number != at or blocks is None:  # the pieces of a stack follow each other
                at, blocks = number, stacked(work.stacks[number], work, cut)
            some.append(Blocks(states[number], blocks, where))
        if trace is not None:
            trace.begin_refresh(batch.owners, batch.refresh)
        with precision_scope(some[0].grads.device, options.precisions[0]):
            refresh_blocks(METHODS[options.method], some, options, batch.refresh, trace)


def _directions(
    work: WorkSet,
    states: Sequence[State],
    cut: list[Tensor],
    memory: list[Tensor],
    options: Options,
    exchange: Exchange,
) -> list[Tensor]:
    """D of each shape group of matrices, `[count, *local]`.

    Args:
        work, states, options, exchange: as for :func:`finish`.
        cut: N of what the blocks are cut from, which is written over.
        memory: for what comes from others, like the shape groups.
    """
    precision = options.precisions[1]
    for stack, state in zip(work.stacks, states, strict=True):
        if not stack.count:
            continue
        blocks = stacked(stack, work, cut)
        with precision_scope(blocks.device, precision):
            found = METHODS[options.method].direction(state, blocks, precision)
        del blocks
        unstack(found, stack, work, cut)
        del found  # before the next stack takes its memory
    return exchange.to_holders(work, cut, memory)


def _graft(
    work: WorkSet,
    tensors: SetState[Tensor],
    grads: list[Tensor],
    aheads: list[Tensor],
    mask: Mask,
    options: Options,
    exchange: Exchange,
) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    """Advance the graft optimizer by G. N of the matrices is given, that of vectors is made here.

    Returns:
        U of the vectors; its directions of the matrices, but for a factor, and their norms, `[total]`; with the factor.
    """
    buffers, vectors = tensors.buffers, len(work.groups) - len(work.matrices)
    correction = None
    if options.grafting == "sgd":
        momenta = [each["momentum_buffer"] for each in buffers]
        own: list[Tensor] = []
        if vectors:
            few = momenta[:vectors], grads[:vectors]
            own = grafting.ahead("sgd", *few, options.momentum, nesterov=options.nesterov)
        found = own + aheads
        grafting.sgd(momenta, grads, mask, options.momentum)
    else:
        found, correction = grafting.adam(
            [each["exp_avg"] for each in buffers],
            [each["exp_avg_sq"] for each in buffers],
            tensors.scalars["adam_step"],
            grads,
            mask,
            aheads=aheads,
            betas=options.betas,
            eps=options.eps,
            beta2_decay=options.beta2_decay,
            memory=options.graft_memory,
            nesterov=options.nesterov,
        )
    updates: list[Tensor] = found[:vectors]
    if vectors and correction is not None:
        count = sum(len(grad) for grad in grads[:vectors])
        torch._foreach_mul_(updates, grafting.per_parameter(correction[:count], updates))
        correction = correction[count:]
    matrices = found[vectors:]
    norms = exchange.norms(work, matrices) if matrices else mask.taken.new_empty(0)
    return updates, matrices, norms, norms if correction is None else norms * correction


def _adapted(
    work: WorkSet,
    tensors: SetState[Tensor],
    inputs: StepInputs,
    directions: list[Tensor],
    taken: Tensor,
    options: Options,
    exchange: Exchange,
) -> list[Tensor]:
    """A, in the memory of D: D is taken into the variances of rows and columns of linear maps, and divided by them.

    Returns:
        `directions`.
    """
    vectors = len(work.groups) - len(work.matrices)
    maps = [i for i, each in enumerate(tensors.buffers[vectors:]) if "row_var" in each] if options.adapts else []
    if not maps:
        return directions
    steps = torch.split(tensors.scalars["adam_step"], [group.count for group in work.groups])
    chosen = [directions[i] for i in maps]
    row_vars, col_vars = ([tensors.buffers[vectors + i][name] for i in maps] for name in ("row_var", "col_var"))
    variance.observe(
        row_vars,
        col_vars,
        *exchange.whole_sides(work, maps, *variance.side_norms(chosen)),
        torch.cat([steps[vectors + i] for i in maps]),
        Mask(taken, [inputs.masks[vectors + i] for i in maps]).each(chosen),
    )
    variance.adapt(chosen, *exchange.held_sides(work, maps, row_vars, col_vars))
    return directions
