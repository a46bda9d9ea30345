"""One step of a param group's parameters on one device, from captured graphs where there are some for its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from jorge.graphs import Graphs
from jorge.inputs import StepInputs, inputs_of
from jorge.options import Options
from jorge.parameters import BITS, gather_gradients
from jorge.schedule import Schedule
from jorge.step import begin, finish, step_work_set
from jorge.store import GroupState
from jorge.trace import Trace


def replay_step(state: GroupState, graphs: Graphs, options: Options, finite: Tensor, trace: Trace | None) -> None:
    """As :func:`jorge.step.take_step`.

    While the gap between refreshes grows, for whoever watches a step, and at a set of gradients that is not the usual
    one, the step is taken without a graph, with the same numbers.
    """
    schedule = Schedule(options.interval, options.warmup_refreshes, options.stagger)
    numbers = graphs.scalars.options(options)
    found = [inputs_of(state, number, schedule, options, trace, None) for number in range(len(state.work_sets))]
    taking_part = [number for number, inputs in enumerate(found) if any(inputs.grads)]
    settled = trace is None and all(step is None or schedule.is_settled(step) for step in state.steps)
    given = tuple(step is not None for step in state.steps)
    if settled and graphs.still_hold(options, state.params, given):
        _run(state, graphs, [(number, found[number]) for number in taking_part], numbers, finite)
    else:
        for number in taking_part:
            work, tensors = state.work_sets[number], state.tensors[number]
            step_work_set(work, tensors, found[number], finite, numbers, state.exchange, trace)
    for number in taking_part:
        state.commit(state.work_sets[number])


def _run(
    state: GroupState, graphs: Graphs, found: Sequence[tuple[int, StepInputs]], numbers: Options, finite: Tensor
) -> None:
    """Copy the gradients to where they are read, and run the rest of the step from there."""
    flag = graphs.finite(finite)
    if not graphs.rooms:
        graphs.rooms = [_rooms(state, number) for number in range(len(state.work_sets))]
    for number, inputs in found:
        work = state.work_sets[number]
        kept = finite.to(BITS[work.compute])
        rooms = graphs.rooms[number]
        gather_gradients(work, inputs.grads, inputs.present, kept, maximize=numbers.maximize, into=rooms)
    held = [(number, replace(inputs, grads=[])) for number, inputs in found]  # a graph reads none of the caller's

    def body() -> None:
        for number, inputs in held:
            work, grads = state.work_sets[number], list(graphs.rooms[number])
            kept = flag.to(BITS[work.compute])
            tensors, exchange = state.tensors[number], state.exchange
            begun = begin(work, tensors, inputs, grads, kept, numbers, exchange)
            finish(work, tensors, inputs, begun, flag, numbers, exchange, trace=None)

    kind = tuple((number, tuple(map(tuple, inputs.scheduled))) for number, inputs in held)
    graphs.run(kind, body, held)


def _rooms(state: GroupState, number: int) -> list[Tensor]:
    """A tensor for the gradients of each shape group of a work set, `[count, *local]`."""
    work = state.work_sets[number]
    with torch.inference_mode(False):
        return [
            torch.empty((group.count, *group.local), dtype=work.compute, device=state.device) for group in work.groups
        ]
