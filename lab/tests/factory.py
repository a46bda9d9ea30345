"""Records made by hand, as `jorge_lab.runs.run` writes them, for tests of what becomes of them."""

import math
from collections.abc import Sequence
from typing import Any

LABELS = {"jorge": "Jorge", "sgd": "SGD", "adamw": "AdamW", "shampoo": "Shampoo", "soap": "SOAP"}


def record(
    optimizer: str,
    seed: int,
    losses: Sequence[float],
    *,
    ms: float = 10.0,
    optimizer_ms: float = 2.0,
    task: str = "mnist",
    size: str = "small",
    setting: str = "transferred",
    steps: int | None = None,
    metric: float = 0.9,
    baseline: str = "sgd",
    date: str = "2026-11-23",
    repetition: int = 0,
) -> dict[str, Any]:
    """A run of these losses, `ms` a step, `optimizer_ms` of them the optimizer's; shorter than `steps`: diverged."""
    done = len(losses)
    steps = steps or done
    return ({"repetition": repetition} if repetition else {}) | {
        "key": [1, task, optimizer, seed, steps, 100],
        "task": task,
        "size": size,
        "optimizer": optimizer,
        "setting": setting,
        "label": LABELS.get(optimizer, optimizer),
        "task_info": {
            "title": f"The task {task}",
            "origin": "made by hand",
            "why": "It is a test.",
            "baseline": baseline,
            "metric": ["accuracy", "higher"],
            "schedule": "cosine",
            "batch_size": 100,
        },
        "seed": seed,
        "steps": steps,
        "diverged_at": done + 1 if done < steps else None,
        "losses": list(losses),
        "seconds": [ms / 1000 * (i + 1) for i in range(done)],
        "cpu_seconds": [0.9 * ms / 1000 * (i + 1) for i in range(done)],
        "optimizer_seconds": [optimizer_ms / 1000] * done,
        "evaluations": [[done, metric]] if done == steps else [],
        "state_bytes": 100,
        "settings": {"lr": 0.1, optimizer: True},
        "environment": {
            "jorge": "0.1",
            "torch": "2",
            "python": "3",
            "device": "CPU",
            "machine": "Linux",
            "threads": 1,
            "date": date,
        },
    }


def falling(rate: float, seed: int, steps: int = 200) -> list[float]:
    """A loss that halves about every 0.7 / `rate` steps, with a ripple that differs by seed."""
    return [
        2 * math.exp(-rate * step * (1 + 0.02 * seed)) + 0.002 * math.sin(step + seed) + 0.01 for step in range(steps)
    ]


def comparison(task: str, rates: dict[str, float], seeds: int = 3, **options: Any) -> list[dict[str, Any]]:
    """Runs on one task whose losses fall at these rates; "name@setting" gives a setting, each further one is slower."""
    found = []
    for i, (key, rate) in enumerate(rates.items()):
        name, _, setting = key.partition("@")
        found += [
            record(
                name,
                seed,
                falling(rate, seed),
                ms=10 + 2 * i,
                optimizer_ms=1 + 2 * i,
                task=task,
                setting=setting or "transferred",
                **options,
            )
            for seed in range(seeds)
        ]
    return found


#: Two tasks, several settings: Jorge is ahead on the first, and behind SOAP on the second.
TWO_TASKS = [
    *comparison("mnist", {"sgd": 0.02, "sgd@tuned": 0.025, "adamw": 0.03, "jorge": 0.06, "jorge@tuned": 0.061}),
    *comparison("shakespeare", {"sgd": 0.02, "adamw": 0.03, "soap": 0.08, "jorge": 0.06}),
]
