"""What a step costs alone and in a whole iteration, in turns, and what the device could do at best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import nn

from jorge import Jorge
from jorge.methods import DAMPING_PERIOD
from jorge_lab.cost.contenders import LATE
from jorge_lab.cost.counting import kernel_launches
from jorge_lab.cost.gpu.models import TRAININGS, build
from jorge_lab.cost.gpu.optimizers import KINDS, PACKAGED, RIVALS, VARIANTS, Stepper, interval, new_stream
from jorge_lab.cost.gpu.optimizers import build as build_optimizer
from jorge_lab.cost.gpu.session import Session, Timer, best_ms, first_line
from jorge_lab.cost.harness import Spread, interleave
from jorge_lab.cost.rivals import RIVALS as PACKAGES

#: Who takes part in whole iterations, and whose step is measured alone; captured graphs come last, on their own.
ITERATED = (*RIVALS, "jorge")
CAPTURED, SLOW = ("jorge, graph",), (*PACKAGED, "jorge, exact")
ALONE = (*RIVALS, *(name for name in VARIANTS if name not in CAPTURED + SLOW))
#: Seconds after which no more steps of one are taken, but for one of each kind that it has.
_ENOUGH = 5.0
#: Steps of a Jorge between two refreshes by default.
GAP = 5
#: Iterations that are timed in one go: two refreshes of a Jorge fall in each.
_BLOCK = 2 * GAP


@contextmanager
def _tf32(on: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if on else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def ceilings(session: Session) -> dict[str, float]:
    """Bandwidth of a copy, the rates of batched products of blocks, and what a small kernel costs."""
    device, found = session.device, dict[str, float]()
    source = torch.randn(2**16 if session.tiny else 2**28, device=device)
    found["copy, TB/s"] = 2 * source.nbytes / best_ms(session, source.clone, 10) / 1e9
    small, count = torch.ones(8, device=device), 50 if session.tiny else 500

    def many() -> None:
        for _ in range(count):
            small.add_(1)

    many()
    with Timer(device) as timer:
        many()
    found["small kernel, µs"] = timer.ms * 1e3 / count
    if session.cuda:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=new_stream()):
            many()
        found["small kernel in a graph, µs"] = best_ms(session, graph.replay, 3) * 1e3 / count
    for side in (32,) if session.tiny else (64, 128, 256, 512):
        blocks = torch.randn(2 if session.tiny else 2**25 // side**2, side, side, device=device)
        flops = 2 * blocks.shape[0] * side**3 / 1e9
        for name, on in (("float32", False), ("tf32", True)):
            with _tf32(on):
                rate = flops / best_ms(session, lambda blocks=blocks: torch.bmm(blocks, blocks), 5)  # type: ignore[misc]
            found[f"bmm of {side} in {name}, TFLOP/s"] = rate
        lower = blocks.bfloat16()
        found[f"bmm of {side} in bfloat16, TFLOP/s"] = flops / best_ms(session, lambda x=lower: torch.bmm(x, x), 5)  # type: ignore[misc]
    return found


def steps_alone(session: Session, contenders: Sequence[str], name: str) -> list[dict[str, Any]]:
    """Each contender's step, by kind: milliseconds of the device and of the host, kernels, the peak of memory."""
    model, loss = build(name, session.tiny, session.device)
    loss().backward()  # type: ignore[no-untyped-call]
    rows = []
    for contender in contenders:
        missing = PACKAGES[contender].missing if contender in PACKAGED else None
        if missing or session.left() < (60 if contender in SLOW else 15):
            rows.append({"optimizer": contender, "skipped": missing or "out of time"})
            continue
        if session.cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            row = _one_alone(session, contender, model, TRAININGS[name].baseline)
        except Exception as error:  # a finding
            row = {"optimizer": contender, "failed": first_line(error)}
        rows.append(row)
        session.say(f"{name}: {row}")
        session.free()
    return rows


def _one_alone(session: Session, contender: str, model: nn.Module, baseline: str) -> dict[str, Any]:
    stepper = build_optimizer(contender, model, baseline, session.device)
    jorge = stepper.optimizer if isinstance(stepper.optimizer, Jorge) else None
    count = (11 if contender in PACKAGED else 7) if session.tiny else DAMPING_PERIOD * GAP
    if contender in SLOW:  # of which a refresh may take seconds
        stepper.go_to(LATE)
    for _ in range(2):
        stepper.step()
    stepper.go_to(LATE)
    taken: list[tuple[str, Timer]] = []
    end = time.monotonic() + _ENOUGH
    with Timer(session.device) as whole:
        for _ in range(count):
            kind = stepper.next_kind
            with Timer(session.device) as timer:
                stepper.step()
            taken.append((kind, timer))
            if time.monotonic() > end and len(taken) % _BLOCK in (0, GAP * (jorge is not None)):
                break
    row: dict[str, Any] = {"optimizer": contender, "mean_ms": whole.ms / len(taken)}
    for kind in KINDS:
        of_kind = [timer for each, timer in taken if each == kind]
        if of_kind:
            row[f"{kind}_ms"] = median([timer.ms for timer in of_kind])
            row[f"{kind}_host_ms"] = median([timer.host_ms for timer in of_kind])
    if session.cuda:
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
        if jorge is not None and contender not in CAPTURED:
            stepper.go_to(LATE)
            row["plain_kernels"] = kernel_launches(stepper.step, session.device)
            stepper.go_to(LATE + interval(jorge) - 1)
            row["refresh_kernels"] = kernel_launches(stepper.step, session.device)
    return row


def iterations(session: Session, contenders: Sequence[str], name: str) -> list[dict[str, Any]]:
    """Forward, backward and step, in blocks of ten iterations; the contenders take turns, round by round."""
    model, loss = build(name, session.tiny, session.device)
    training = TRAININGS[name]

    def backward() -> None:
        for p in model.parameters():
            p.grad = None
        loss().backward()  # type: ignore[no-untyped-call]

    backward()
    backward()
    steppers: dict[str, Stepper] = {}
    rows: list[dict[str, Any]] = []
    for contender in contenders:
        try:
            backward()
            steppers[contender] = build_optimizer(contender, model, training.baseline, session.device)
        except Exception as error:  # a finding
            rows.append({"optimizer": contender, "failed": first_line(error)})

    def block(stepper: Stepper) -> Callable[[], None]:
        def run() -> None:
            for _ in range(_BLOCK):
                backward()
                stepper.step()

        return run

    cases = {contender: block(stepper) for contender, stepper in steppers.items()}
    # One that would take more than its part of the time left sits out the last round.
    share = session.left() / len(cases) / 2
    seconds = interleave(cases, session.device, rounds=1 if session.tiny else 3, seconds_each=share)
    samples = {contender: [1e3 * each / _BLOCK for each in taken] for contender, taken in seconds.items()}
    for contender, taken in samples.items():
        ratio = Spread.of([a / b for a, b in zip(taken, samples[training.baseline], strict=False)])
        row = {"optimizer": contender, "ms": median(taken), "to_baseline": ratio.median, "rounds": len(taken)}
        if isinstance(steppers[contender].optimizer, Jorge):
            row["block_size"] = steppers[contender].optimizer.param_groups[0]["block_size"]
        rows.append({**row, "to_baseline_quartiles": [ratio.low, ratio.high]})
        session.say(f"{name}: {rows[-1]}")
    return rows
