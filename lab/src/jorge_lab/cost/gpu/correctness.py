"""Whether the step on the device is the step on the CPU, and what must not disturb it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from jorge import Jorge
from jorge.methods import METHODS
from jorge_lab.cost.contenders import LATE
from jorge_lab.cost.gpu.optimizers import capture_all, interval, kind_of, new_stream, settle
from jorge_lab.cost.gpu.session import Session, first_line

_SHAPES = {"linear": (96, 64), "kernel": (24, 16, 3, 3), "wide": (40, 300), "long": (520, 24), "bias": (96,)}
_CPU = torch.device("cpu")
_OPTIONS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 1e-2, "max_dim": 512, "warmup_refreshes": 4}


def _gradient(step: int) -> dict[str, Tensor]:
    """Noise with unequal directions in float64: the same on every device, whatever the weights are."""
    generator = torch.Generator().manual_seed(1000 + step)
    found = {}
    for name, shape in _SHAPES.items():
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        if len(shape) > 1:
            flat = noise.flatten(1)
            rows, columns = (torch.logspace(0, -1.5, side, dtype=torch.float64) for side in flat.shape)
            noise = (flat * rows[:, None] * columns).view(shape)
        found[name] = 1e-2 * noise
    return found


def _weights(device: torch.device, dtype: torch.dtype, *, channels_last: bool = False) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for name, shape in _SHAPES.items():
        weight = (0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(device, dtype)
        if channels_last and weight.dim() == 4:
            weight = weight.to(memory_format=torch.channels_last)
        found[name] = nn.Parameter(weight)
    return found


def _give(params: dict[str, nn.Parameter], step: int, missing: Collection[str] = ()) -> None:
    for name, grad in _gradient(step).items():
        params[name].grad = None if name in missing else torch.empty_like(params[name]).copy_(grad)


def _values(params: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    return {name: p.detach().double().cpu() for name, p in params.items()}


def _trained(
    device: torch.device,
    dtype: torch.dtype,
    steps: int,
    *,
    channels_last: bool = False,
    missing: Callable[[int], Collection[str]] = lambda step: (),
    **options: Any,
) -> dict[str, Tensor]:
    params = _weights(device, dtype, channels_last=channels_last)
    optimizer = Jorge(params.items(), **{**_OPTIONS, **options})
    for step in range(steps):
        _give(params, step, missing(step))
        optimizer.step()
    return _values(params)


def _apart(some: dict[str, Tensor], others: dict[str, Tensor]) -> float:
    """How far some weights are from others, over how far those are from the start."""
    start = _values(_weights(_CPU, torch.float64))
    difference = math.sqrt(sum((some[name] - others[name]).square().sum().item() for name in some))
    return difference / math.sqrt(sum((start[name] - others[name]).square().sum().item() for name in some))


def trajectories(session: Session) -> list[dict[str, Any]]:
    """Steps in float32 and lower precisions on the device and on the CPU, each against float64 on the CPU."""
    steps, rows = (16 if session.tiny else 42), list[dict[str, Any]]()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the matrices are small
    cases: list[tuple[str, dict[str, Any]]] = [(method, {"method": method}) for method in METHODS]
    cases += [("SGD's length", {"grafting": "sgd"}), ("Frobenius", {"graft_norm": "frobenius"})]
    cases += [("bfloat16 preconditioners", {"preconditioner_dtype": torch.bfloat16}), ("stagger", {"stagger": True})]
    for name, options in cases:
        lower = name in METHODS and not METHODS[name].waits
        exact = _trained(_CPU, torch.float64, steps, **options | {"preconditioner_dtype": None})
        for precision in ("float32", "tf32", "bfloat16") if lower else ("float32",):
            given = {**options, "matmul_precision": precision}
            here = _apart(_trained(_CPU, torch.float32, steps, **given), exact)
            there = _apart(_trained(session.device, torch.float32, steps, **given), exact)
            rows.append({"case": f"{name}, {precision}", "cpu": here, "device": there, "ok": there <= 3 * here + 2e-4})
    single: dict[str, Any] = {"matmul_precision": "float32"}
    plain = _trained(session.device, torch.float32, steps, **single)

    def check(case: str, found: dict[str, Tensor], wanted: dict[str, Tensor], most: float) -> None:
        rows.append({"case": case, "device": (apart := _apart(found, wanted)), "ok": apart <= most})

    check("the same twice", _trained(session.device, torch.float32, steps, **single), plain, 0)
    check("float64", _trained(session.device, torch.float64, steps), _trained(_CPU, torch.float64, steps), 1e-9)
    last = _trained(session.device, torch.float32, steps, channels_last=True, **single)
    check("channels_last", last, plain, 2e-4)

    def some(step: int) -> list[str]:
        return [name for i, name in enumerate(_SHAPES) if (step + i) % 4 == 0 and step > 2]

    masked = _trained(session.device, torch.float32, steps, missing=some, **single)
    check("missing gradients", masked, _trained(_CPU, torch.float32, steps, missing=some), 1e-3)
    low = _trained(session.device, torch.bfloat16, steps, **single)
    check("bfloat16 weights", low, _trained(_CPU, torch.bfloat16, steps), 0.3)
    torch.set_num_threads(threads)
    return rows


def not_finite(session: Session) -> list[dict[str, Any]]:
    """A step with a gradient that is not finite changes nothing, to the bit, and the next one goes on."""
    rows = []
    for grafting in ("sgd", "adam"):
        for bad in (math.nan, math.inf):
            params = _weights(session.device, torch.float32)
            optimizer = Jorge(params.items(), **_OPTIONS, grafting=grafting)
            for step in range(8):
                _give(params, step)
                optimizer.step()
            before, state = _values(params), optimizer.state_dict()["state"]
            _give(params, 8)
            grad = params["kernel"].grad
            assert grad is not None
            grad.view(-1)[5] = bad
            optimizer.step()
            after = optimizer.state_dict()["state"]
            same = _apart(_values(params), before) == 0 and all(
                torch.equal(value, after[i][name])
                for i, entry in state.items()
                for name, value in entry.items()
                if isinstance(value, Tensor)
            )
            _give(params, 9)
            optimizer.step()
            goes_on = all(bool(p.isfinite().all()) for p in params.values()) and _apart(_values(params), before) > 0
            rows.append({"case": f"{bad} with the length of {grafting}", "ok": same and goes_on})
    return rows


def waits(session: Session) -> list[dict[str, Any]]:
    """Where the host waits for the device in 30 steps from the first one, by torch's own watch."""
    if not session.cuda:
        return []
    cases: dict[str, dict[str, Any]] = {method: {"method": method} for method in METHODS}
    cases |= {"SGD's length": {"grafting": "sgd"}, "bfloat16": {"matmul_precision": "bfloat16"}}
    cases |= {"stagger": {"stagger": True}, "missing gradients": {}}
    cases |= {"lr on the device": {"lr": torch.tensor(1e-2, device=session.device)}, "lr on the host": {}}
    cases["lr on the host"]["lr"] = torch.tensor(1e-2)
    rows = []
    for name, options in cases.items():
        params = _weights(session.device, torch.float32)
        optimizer = Jorge(params.items(), **{**_OPTIONS, **options})
        seen: dict[str, int] = {}
        for step in range(30):
            _give(params, step, ["wide"] if name == "missing gradients" and step % 3 == 2 else ())
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode("warn")
            try:
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")
            for warning in caught:
                if "called a synchronizing" in str(warning.message):
                    place = f"{Path(warning.filename).name}:{warning.lineno}"
                    seen[place] = seen.get(place, 0) + 1
        expected = name in METHODS and METHODS[name].waits
        rows.append({"case": name, "waits": seen, "ok": expected or not seen})
    return rows


def graphs(session: Session) -> list[dict[str, Any]]:
    """Steps of `cuda_graphs=True` against those without, with an lr that changes and a step that is left out."""
    rows = []
    cases: dict[str, dict[str, Any]] = {m: {"method": m} for m, method in METHODS.items() if not method.waits}
    cases |= {"SGD's length": {"grafting": "sgd"}, "float32": {"matmul_precision": "float32"}}
    cases |= {"bfloat16": {"matmul_precision": "bfloat16"}}
    for name, options in cases.items():
        eager, replayed = (_history(session, options, replays=replays) for replays in (False, True))
        apart = _apart(eager[-1].weights, replayed[-1].weights)
        row: dict[str, Any] = {"case": name, "apart": apart, "ok": apart <= 1e-4}
        if not row["ok"]:  # where to look
            differ = (step for step, (a, b) in enumerate(zip(eager, replayed, strict=True)) if a.differing(b))
            first = next(differ)
            row["first"] = {"step": first, "kind": eager[first].kind, "what": eager[first].differing(replayed[first])}
        rows.append(row)
    return rows


@dataclass(frozen=True)
class _Moment:
    """All that there is after a step of some kind, on the CPU."""

    kind: str
    weights: dict[str, Tensor]
    state: dict[str, Tensor]

    def differing(self, other: _Moment) -> list[str]:
        """Names of what is not the same to the bit."""
        mine, others = self.weights | self.state, other.weights | other.state
        return [name for name in mine if not torch.equal(mine[name], others[name])]


def _history(session: Session, options: dict[str, Any], *, replays: bool) -> list[_Moment]:
    """Steps past the warm-up, among them each kind: eagerly, or by replays."""
    params = _weights(session.device, torch.float32)
    optimizer = Jorge(params.items(), **{**_OPTIONS, **options}, cuda_graphs=replays)
    for step in range(12):
        _give(params, step)
        optimizer.step()
    if replays:  # each kind of step is captured, and those steps are undone
        weights, saved = _values(params), optimizer.state_dict()
        capture_all(optimizer)
        for name, p in params.items():
            p.data.copy_(weights[name])
        optimizer.load_state_dict(saved)
    settle(optimizer, LATE)
    found = []
    for step in range(7 * interval(optimizer) + 3):
        optimizer.param_groups[0]["lr"] = 1e-2 * 0.98**step
        _give(params, 100 + step)
        grad = params["kernel"].grad
        if step == 10 and grad is not None:
            grad.view(-1)[5] = math.inf
        optimizer.step()
        state = {
            f"{name}.{key}": value.detach().cpu().clone()
            for name, p in params.items()
            for key, value in optimizer.state[p].items()
            if isinstance(value, Tensor)
        }
        found.append(_Moment(kind_of(optimizer, LATE + step + 1), _values(params), state))
    return found


def loops(session: Session) -> list[dict[str, Any]]:
    """What users do around a step: autocast, a scaler, their own TF32 switches, checkpoints to the CPU and back."""
    rows: list[dict[str, Any]] = []

    def attempt(case: str, body: Callable[[], bool]) -> None:
        try:
            rows.append({"case": case, "ok": body()})
        except Exception as error:
            rows.append({"case": case, "ok": False, "error": first_line(error)})

    def step_of(params: dict[str, nn.Parameter], steps: range, *, autocast: bool = False) -> Jorge:
        optimizer = Jorge(params.items(), **_OPTIONS)
        for step in steps:
            _give(params, step)
            with torch.autocast(session.device.type, dtype=torch.bfloat16, enabled=autocast):
                optimizer.step()
        return optimizer

    def inside_autocast() -> bool:
        inside, outside = (_weights(session.device, torch.float32) for _ in range(2))
        step_of(inside, range(6), autocast=True)
        step_of(outside, range(6))
        return _apart(_values(inside), _values(outside)) == 0

    def scaled() -> bool:
        params = _weights(session.device, torch.float32)
        optimizer = Jorge(params.items(), **_OPTIONS)
        scaler = torch.amp.GradScaler(session.device.type, enabled=session.cuda)
        for _ in range(3):
            loss = torch.stack([p.square().sum() for p in params.values()]).sum()
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        return all(entry["step"] == 3 for entry in optimizer.state.values())

    def switches() -> bool:
        def read() -> tuple[str, str]:
            return torch.backends.cuda.matmul.fp32_precision, torch.get_float32_matmul_precision()

        before = read()
        step_of(_weights(session.device, torch.float32), range(2))
        return read() == before

    def moved() -> bool:
        """Four steps here, four on the CPU, and four here again, against twelve here."""
        params = _weights(session.device, torch.float32)
        optimizer = step_of(params, range(4))
        for device, steps in ((_CPU, range(4, 8)), (session.device, range(8, 12))):
            weights, state = _values(params), optimizer.state_dict()
            params = _weights(device, torch.float32)
            for name, p in params.items():
                p.data.copy_(weights[name])
            optimizer = Jorge(params.items(), **_OPTIONS)
            optimizer.load_state_dict(state)
            for step in steps:
                _give(params, step)
                optimizer.step()
        stayed = _weights(session.device, torch.float32)
        step_of(stayed, range(12))
        return _apart(_values(params), _values(stayed)) < 1e-2

    def first_step_captured() -> bool:
        if not session.cuda:
            return True
        params = _weights(session.device, torch.float32)
        lr = torch.tensor(1e-2, device=session.device)
        optimizer = Jorge(params.items(), **{**_OPTIONS, "lr": lr, "capturable": True})
        _give(params, 0)
        torch.cuda.synchronize()
        try:
            with torch.cuda.graph(torch.cuda.CUDAGraph(), stream=new_stream()):
                optimizer.step()
        except RuntimeError as error:
            return "before the capture" in str(error)
        return False

    attempt("a step inside autocast", inside_autocast)
    attempt("GradScaler", scaled)
    attempt("TF32 switches stay as they were", switches)
    attempt("a checkpoint to the CPU and back", moved)
    attempt("the first step in a capture is refused", first_step_captured)
    return rows


#: By name, what each checks.
CHECKS: dict[str, Callable[[Session], list[dict[str, Any]]]] = {
    "trajectories": trajectories,
    "not finite": not_finite,
    "waits": waits,
    "graphs": graphs,
    "loops": loops,
}
