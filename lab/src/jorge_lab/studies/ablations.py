"""The ablations: what each option does to training, as a question and the optimizers that answer it.

Every ablation has the task's first-order baseline, which sets the target, and Jorge as it is by default, with which
the others are compared; an option's default value is therefore not listed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from jorge.options import DEFAULTS
from jorge_lab.runs.environment import environment
from jorge_lab.runs.jobs import Job, jobs_for
from jorge_lab.runs.records import read_file
from jorge_lab.runs.store import Record, Store
from jorge_lab.tasks.task import Size, Task


@dataclass(frozen=True)
class Ablation:
    """One question about an option, or two that belong together.

    Args:
        name: its name on the command line.
        question: what it answers, in a sentence.
        options: the options that vary, which its table shows.
        optimizers: names as `jorge compare` takes them, beside the baseline and `jorge`. `{baseline}` stands for the
            task's baseline, `{other}` for the grafting that `jorge` does not have there, `{adam}` for what gives it
            Adam's.
    """

    name: str
    question: str
    options: tuple[str, ...]
    optimizers: tuple[str, ...]

    def names(self, task: Task) -> list[str]:
        """The optimizers on a task: its baseline, Jorge as it is by default, and what is asked about."""
        baseline, is_adam = task.recipe.baseline, task.recipe.transfer == "adamw"
        words = {
            "baseline": baseline,
            "other": "sgd" if is_adam else "adam",
            "adam": "" if is_adam else "grafting=adam:",
        }
        asked = [name.format(**words) for name in self.optimizers]
        # the task's own schedule is that of the baseline and of Jorge by default, and so is the recipe's length
        same = [f":schedule={task.recipe.schedule}", *[f":beta2_decay={DEFAULTS['beta2_decay']}"] * is_adam]
        return [baseline, "jorge", *(name for name in asked if not name.endswith(tuple(same)))]


def _values(option: str, *values: object, of: str = "jorge") -> tuple[str, ...]:
    return tuple(f"{of}:{option}={value}" for value in values)


#: With the default `warmup_refreshes` the gap would not grow to the larger intervals, and runs would be the same.
_INTERVALS = ("1", "2", "10:warmup_refreshes=4", "20:warmup_refreshes=1", "50:warmup_refreshes=1")

ABLATIONS: dict[str, Ablation] = {
    ablation.name: ablation
    for ablation in (
        Ablation(
            "interval",
            "How rarely may the roots be refreshed, and does the exact root bear it better?",
            ("interval", "warmup_refreshes"),
            (*_values("interval", *_INTERVALS), "shampoo", *_values("interval", *_INTERVALS, of="shampoo")),
        ),
        Ablation(
            "method",
            "Which way to track the roots trains best: whitening, congruence, the paper's series (from the first "
            "gradient's scale, and from its ε), or the exact root?",
            ("method", "init"),
            ("jorge-congruence", "jorge-binomial", "jorge-binomial:init=paper", "shampoo"),
        ),
        Ablation(
            "degree",
            "Is the second degree of the polynomials worth its products, or does the first do?",
            ("method", "degree"),
            ("jorge:degree=1", "jorge-congruence", "jorge-congruence:degree=1"),
        ),
        Ablation(
            "memory",
            "How long should the roots remember?",
            ("preconditioner_beta2",),
            _values("preconditioner_beta2", 0.8, 0.9, 0.98, 0.99),
        ),
        Ablation(
            "damping",
            "How much damping does training bear, and does it need any?",
            ("damping",),
            _values("damping", 0, 1e-5, 1e-3),
        ),
        Ablation(
            "warmup",
            "How slowly must the gap between refreshes grow to the interval?",
            ("warmup_refreshes",),
            _values("warmup_refreshes", 0, 10, 40),
        ),
        Ablation(
            "block-size",
            "What do smaller blocks cost in steps, and what do they save in time and memory?",
            ("block_size",),
            _values("block_size", 32, 64, 128, 256, 1024, None),
        ),
        Ablation(
            "grafting",
            "Which recipe and step length are the better ones to take over, AdamW's or SGD's?",
            ("grafting",),
            ("jorge:grafting={other}",),
        ),
        Ablation(
            "length-memory",
            "How long should Adam's step length remember how large gradients were?",
            ("beta2_decay", "betas"),
            (
                f"jorge:{{adam}}beta2_decay={DEFAULTS['beta2_decay']}",
                "jorge:{adam}beta2_decay=None",
                *_values("{adam}beta2_decay=None:betas", "(0.9,0.95)", "(0.9,0.99)"),
            ),
        ),
        Ablation(
            "schedule",
            "Does what Jorge gains depend on the schedule: steps of ×0.1, cosine, or none?",
            ("schedule",),
            tuple(
                f"{name}:schedule={schedule}"
                for schedule in ("step", "cosine", "keep")
                for name in ("{baseline}", "jorge")
            ),
        ),
        Ablation(
            "dtype",
            "May the roots be stored, or multiplied, in bfloat16?",
            ("preconditioner_dtype", "matmul_precision"),
            # quoted, as a bare bfloat16 is torch's dtype
            (
                "jorge:preconditioner_dtype=bfloat16",
                "jorge:matmul_precision=bfloat16",
                "jorge:preconditioner_dtype=bfloat16:matmul_precision=bfloat16",
            ),
        ),
    )
}


def jobs_of(
    ablation: Ablation, tasks: Iterable[Task], names: Sequence[str], size: Size, seeds: int, steps: int | None
) -> list[Job]:
    """The runs of an ablation, seed by seed; `names` are those by which the tasks are found.

    Raises:
        UsageError: there is no such optimizer.
    """
    found = [
        job
        for task, name in zip(tasks, names, strict=True)
        for job in jobs_for([name], size, ablation.names(task), ["transferred"], seeds, steps)
    ]
    return sorted(found, key=lambda job: job.seed)


def records_of(jobs: Sequence[Job], store: Store) -> list[Record]:
    """The records of these very runs, in the order of the jobs; a run that is not there has none."""
    records = read_file(store.path)
    return [mine[-1] for job in jobs if (mine := _of(job, records))]


def share(jobs: Sequence[Job], store: Store, device: torch.device) -> int:
    """Copy into an ablation's records what its siblings have trained of the same runs; how many were copied.

    Siblings are the records in folders beside its own. All ablations have the baseline and Jorge by default in common.
    Runs on another machine, with other threads or versions are not shared: the seconds of a table stay comparable.
    """
    path = store.path
    there = read_file(path)
    here = _undated(environment(device))
    siblings = [other for other in sorted(path.parent.parent.glob(f"*/{path.name}")) if other != path]
    others = [r for sibling in siblings for r in read_file(sibling) if _undated(r.get("environment", {})) == here]
    copied = 0
    for job in jobs:
        if not _of(job, there) and (mine := _of(job, others)):
            store.add(mine[-1])
            copied += 1
    return copied


def _undated(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "date": ""}


def _of(job: Job, records: Iterable[Record]) -> list[Record]:
    """The records that are of this very run."""
    named = [r for r in records if (r["optimizer"], r["seed"]) == (job.optimizer, job.seed)]
    # settings are known from building model and optimizer: not for nothing, and not for every seed
    return [r for r in named if job.matches(r, _settings(replace(job, seed=0)))]


@cache
def _settings(job: Job) -> dict[str, Any]:
    return job.settings()
