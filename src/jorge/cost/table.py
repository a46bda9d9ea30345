"""An estimate as text and as plain data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jorge.cost.estimating import Estimate, Row

_HEADER = ("parameter", "shape", "blocks", "state", "a step")
_RIVALS = ("optimizer", "state", "FLOPs a step", "eigh, QR", "moved a step", "overhead")
#: Columns of a terminal; names are cut to it, but to no less than the second.
_WIDTH, _LEAST = 80, 12


def estimate_table(cost: Estimate, rows: int | None = None) -> str:
    """Parameters, totals and rivals; with `rows`, only the parameters that cost most, dearest first."""
    shown: Sequence[Row] = cost.rows
    if rows is not None:
        shown = sorted(cost.rows, key=lambda row: row.flops_per_step(cost.interval), reverse=True)[:rows]
    lines = [_HEADER, *(_cells(row, cost.interval) for row in shown)]
    hidden = len(cost.rows) - len(shown)
    if hidden:
        lines.append((f"… and {hidden} more", "", "", "", ""))
    count = sum(b for row in cost.rows for b, _, _ in row.plan.blocks)
    total = (f"{len(cost.rows)} parameters", f"{count} blocks", f"{cost.state_bytes:,} B", _flops(cost.flops_per_step))
    lines.append(("total", *total))
    rivals, notes = _rivals(cost)
    parts = (aligned(_fitted(lines), left=3), "\n".join(_summary(cost)), aligned(rivals, left=1), "\n".join(notes))
    return "\n\n".join(parts)


def _fitted(lines: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Lines whose first cells leave room for the others: of a long name the end says more."""
    rest = sum(max(len(line[i]) for line in lines) + 2 for i in range(1, len(lines[0])))
    room = max(_LEAST, _WIDTH - rest)
    return [(name if len(name) <= room else f"…{name[1 - room :]}", *others) for name, *others in lines]


def _cells(row: Row, interval: int) -> tuple[str, ...]:
    plan = row.plan
    blocks = " + ".join(f"{count} of {m}×{n}" for count, m, n in plan.blocks) or "–"
    if "diagonal" in (plan.left, plan.right):
        blocks += f" {plan.left}/{plan.right}".replace("diagonal", "diag")
    shape = "×".join(map(str, plan.shape)) or "scalar"
    return (plan.name, shape, blocks, f"{plan.state_bytes:,} B", _flops(row.flops_per_step(interval)))


def _summary(cost: Estimate) -> list[str]:
    """What concerns the whole model, a line each."""
    n = cost.launches
    lines = [
        f"FLOPs: {_flops(cost.flops_per_step)} a step at an interval of {cost.interval}, "
        f"{_flops(cost.early_flops_per_step)} in each of the first ten steps",
        f"of these: {_flops(cost.direction_flops)} for the direction, {_flops(cost.refresh_flops)} for a refresh",
        f"launches: {n.plain} a step, {n.refresh} with a refresh, up to {n.early} in the first ten",
        f"elementwise work: {si(cost.bytes_per_step)}B moved a step, at {cost.balance:g} FLOPs a byte"
        + (
            f"; a launch counts as {si(cost.launch)}B, {cost.launches_per_step:.0f} a step on average"
            * (cost.launch > 0)
        ),
    ]
    if cost.eigh_flops:
        lines.append(f"eigh: {si(cost.eigh_flops)} FLOPs a refresh, nominal (9 d³), not in the figures above")
    if cost.model_flops is None:
        lines.append("overhead: not known without the model's FLOPs (a sample input, or model_flops)")
        return lines
    speed = f", done {cost.model_speed:g} times as fast" if cost.model_speed != 1 else ""
    baseline = "SGD" if cost.grafting == "sgd" else "AdamW"
    lines += [
        f"model: {si(cost.model_flops)} FLOPs forward and backward{speed}",
        f"predicted overhead over {baseline}: {_percent(cost.overhead)}, "
        f"{_percent(cost.early_overhead)} in the first ten steps",
    ]
    return lines


def _rivals(cost: Estimate) -> tuple[list[tuple[str, ...]], list[str]]:
    """What others cost as a table, and what was counted of each."""
    lines: list[tuple[str, ...]] = [_RIVALS]
    mine = (cost.state_bytes, cost.flops_per_step, cost.eigh_flops / cost.interval, cost.bytes_per_step, cost.overhead)
    found: list[tuple[str, Any, str]] = [("Jorge", mine, f'method="{cost.method}", interval {cost.interval}')]
    for r in cost.rivals:
        theirs = (r.state_bytes, r.flops_per_step, r.nominal_flops_per_step, r.bytes_per_step, r.overhead)
        found.append((r.name, theirs, r.note))
    for name, (state, flops, nominal, moved, overhead), _ in found:
        lines.append((name, f"{state:,} B", _flops(flops), _flops(nominal), f"{si(moved)}B", _percent(overhead)))
    return lines, [f"{name}: {note}" for name, _, note in found]


def aligned(lines: Sequence[tuple[str, ...]], *, left: int) -> str:
    """Columns of equal width under a rule; the first `left` flush left, others right."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    texts = [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    ]
    texts = [text.rstrip() for text in texts]
    return "\n".join([texts[0], "─" * max(map(len, texts)), *texts[1:]])


def si(value: float) -> str:
    """Three figures and a prefix: 12300 is `12.3 k`."""
    for power, prefix in ((15, "P"), (12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if value >= 0.9995 * 10**power:
            return f"{_figures(value / 10**power)} {prefix}"
    return f"{_figures(value)} " if value else "0 "


def _flops(value: float) -> str:
    return si(value).rstrip()


def _figures(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2%}".replace("%", " %")


def as_dict(cost: Estimate) -> dict[str, Any]:
    """All of an estimate as plain data, with what its properties compute."""
    rows = []
    for row in cost.rows:
        data = asdict(row)
        plan = data.pop("plan")
        for name in ("group", "lr", "weight_decay"):  # which cost nothing
            del plan[name]
        rows.append(plan | data | {"flops_per_step": row.flops_per_step(cost.interval)})
    computed = (
        "state_bytes",
        "direction_flops",
        "refresh_flops",
        "eigh_flops",
        "flops_per_step",
        "early_flops_per_step",
        "overhead",
        "early_overhead",
    )
    options = ("interval", "block_size", "method", "grafting", "bytes_per_step", "early_bytes_per_step")
    model = ("model_flops", "balance", "model_speed", "launch", "launches_per_step", "early_launches_per_step")
    return {
        **{name: getattr(cost, name) for name in (*options, *computed, *model)},
        "launches": asdict(cost.launches),
        "rows": rows,
        "rivals": [asdict(r) for r in cost.rivals],
    }
