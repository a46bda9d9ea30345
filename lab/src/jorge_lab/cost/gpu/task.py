"""One task of the laboratory on the GPU: seconds until AdamW's best loss, with no package but torch and numpy."""

from __future__ import annotations

from typing import Any

from jorge_lab.cost.gpu.session import Session

#: Its text is the standard library of the Python that runs it, so any machine has it.
TASK = "python"
OPTIMIZERS = ("adamw", "jorge", "muon")


def to_target(session: Session) -> list[dict[str, Any]]:
    """Steps and seconds of each optimizer to the lowest smoothed loss of AdamW, and where each ends."""
    from jorge_lab.contenders.finding import find_contender
    from jorge_lab.runs.run import train
    from jorge_lab.statistics.reaching import first_step_below, smooth
    from jorge_lab.tasks.finding import find_task

    task = find_task(TASK, "smoke" if session.tiny else "small")
    data = task.load().to(session.device)
    steps = 4 if session.tiny else task.steps
    rows: list[dict[str, Any]] = []
    target = None
    for name in OPTIMIZERS[: 2 if session.tiny else None]:
        if session.left() < 30:
            rows.append({"optimizer": name, "skipped": "out of time"})
            continue
        record = train(task, find_contender(name), 0, steps, data, lambda step, loss, metric: None)
        losses = smooth(record["losses"], record["steps"])
        target = min(losses) if target is None else target
        reached = first_step_below(record, target)
        seconds = None if reached is None else record["seconds"][reached - 1]
        row = {"optimizer": name, "steps": reached, "seconds": seconds, "final_loss": losses[-1]}
        rows.append({**row, "ms_a_step": 1e3 * record["seconds"][-1] / len(record["seconds"])})
        session.say(f"{task.name}: {rows[-1]}")
    return rows
