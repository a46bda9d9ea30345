"""What was found on the GPU as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from jorge.cost import estimate
from jorge_lab.cost.gpu.models import TRAININGS
from jorge_lab.cost.harness import table

#: The largest blocks before `"auto"` was 256 there; the record does not say so. It left sides of up to 256 whole, too.
_EARLIER = 128
_STEP = ["optimizer", "plain, ms", "refresh, ms", "mean, ms", "kernels, plain", "refresh", "host, ms", "peak, GB"]


def report(found: Mapping[str, Any]) -> str:
    """All tables."""
    parts: list[str] = []
    for name, training in TRAININGS.items():
        rows = found.get(f"iteration, {name}")
        if rows is not None:
            parts += [f"{training.title}: iteration", _or_reason(rows, _iterations), _predicted(name, rows)]
        alone = [found[f"{kind}, {name}"] for kind in ("step", "slow", "captured") if f"{kind}, {name}" in found]
        if alone:
            listed = [row for rows in alone if isinstance(rows, list) for row in rows]
            parts += [f"{training.title}: the step alone", _steps(listed) if listed else _or_reason(alone[0], _steps)]
    if "task" in found:
        parts += ["One task to AdamW's lowest loss", _or_reason(found["task"], _task)]
    checks = {name: found[name] for name in ("trajectories", "not finite", "waits", "graphs", "loops") if name in found}
    if checks:
        parts += [
            "Correctness",
            table(["check", "cases", "as they should be", "not"], list(map(_check, checks.items()))),
        ]
    if isinstance(found.get("ceilings"), dict):
        parts += ["The device", table(["what", "measured"], [list(item) for item in found["ceilings"].items()])]
    return "\n\n".join(parts)


def failures(found: Mapping[str, Any]) -> list[str]:
    """What is not as it should be, a line each."""
    lines = []
    for section, rows in found.items():
        if isinstance(rows, dict):
            lines += [f"{section}: {rows['failed']}"] if "failed" in rows else []
            continue
        for row in rows if isinstance(rows, list) else ():
            if row.get("ok") is False or "failed" in row:
                lines.append(f"{section}: {row}")
    return lines


def _predicted(name: str, rows: Any) -> str:
    """What the cost model says of the iteration of `jorge`, with the blocks that it had."""
    sizes = [row["block_size"] for row in rows if "block_size" in row] if isinstance(rows, list) else []
    training = TRAININGS[name]
    with torch.device("meta"):
        model, sample = training.shape()
    grafting = "sgd" if training.baseline == "sgd" else "adam"
    blocks = sizes[0] if sizes else _EARLIER
    cost = estimate(model, sample_input=sample, gpu=True, grafting=grafting, block_size=blocks)
    assert cost.overhead is not None
    return f"`jorge cost --gpu` predicts {1 + cost.overhead:.3f}."


def _or_reason(rows: Any, make: Any) -> str:
    if isinstance(rows, dict):
        return str(rows.get("skipped") or rows.get("failed"))
    made: str = make(rows)
    return made


def _check(item: tuple[str, Any]) -> list[Any]:
    name, rows = item
    if isinstance(rows, dict):
        return [name, None, None, rows.get("skipped") or rows.get("failed")]
    bad = [row["case"] for row in rows if not row["ok"]]
    return [name, len(rows), len(rows) - len(bad), ", ".join(bad) or "none"]


def _iterations(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ["optimizer", "ms an iteration", "÷ baseline's", "quartiles", "rounds"]
    lines: list[list[Any]] = []
    for row in rows:
        if "ms" not in row:
            lines.append([row["optimizer"], row.get("failed") or row.get("skipped")])
            continue
        low, high = row["to_baseline_quartiles"]
        ratios = [f"{row['to_baseline']:.3f}", f"{low:.3f} … {high:.3f}"]
        lines.append([row["optimizer"], f"{row['ms']:.1f}", *ratios, row["rounds"]])
    return table(columns, lines)


def _steps(rows: Sequence[Mapping[str, Any]]) -> str:
    lines: list[list[Any]] = []
    for row in rows:
        if "mean_ms" not in row:
            lines.append([row["optimizer"], row.get("failed") or row.get("skipped")])
            continue
        peak = row["peak_bytes"] / 1e9 if "peak_bytes" in row else None
        times = [row.get(key) for key in ("plain_ms", "refresh_ms", "mean_ms")]
        counts = [row.get(key) for key in ("plain_kernels", "refresh_kernels", "plain_host_ms")]
        lines.append([row["optimizer"], *times, *counts, peak])
    return table(_STEP, lines)


def _task(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = ["optimizer", "steps", "seconds", "final loss", "ms a step"]
    keys = ("steps", "seconds", "final_loss", "ms_a_step")
    return table(columns, [[row["optimizer"], *(row.get(key) for key in keys)] for row in rows])
