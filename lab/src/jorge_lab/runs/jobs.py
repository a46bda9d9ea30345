"""The runs of a comparison: which they are, by names that another process understands, and how one is done."""

from __future__ import annotations

import ast
import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any, get_args

import torch
from torch import nn

from jorge_lab.tasks import own
from jorge_lab.errors import LabError
from jorge_lab.contenders import CONTENDERS, SETTINGS, Built, Contender, Setting, variant
from jorge_lab.contenders.contender import Make, Options
from jorge_lab.contenders.tuned import tuned_options
from jorge_lab.runs.run import Record, Watcher, describe, first_loss, key, train
from jorge_lab.tasks.task import DataMissingError, Size, Task
from jorge_lab.tasks import TASKS
from jorge.methods import METHODS
from jorge.transfer import Schedule

#: The method that each of our names stands for; only these take options in their names.
_OURS = {"jorge": "whitening", "shampoo": "exact", **{f"jorge-{method}": method for method in METHODS}}


class UsageError(LabError):
    """Something that the caller asked for cannot be done; the message says what to do."""


@cache
def find_task(name: str, size: Size) -> Task:
    """A task of the laboratory, or a user's `module:function`.

    Raises:
        UsageError: there is none of the name.
        TaskError: the user's task cannot be used.
    """
    if ":" in name:
        return own.load(name, size)
    if name not in TASKS:
        raise UsageError(f"unknown task {name!r}: there are {', '.join(TASKS)}, or module:function of your own")
    return TASKS[name](size)


@cache
def _first_loss(name: str, size: Size, seed: int, device: torch.device) -> float:
    task = find_task(name, size)
    return first_loss(task, seed, task.load().to(device))


def is_stale(name: str, size: Size, record: Record, device: torch.device) -> bool:
    """Whether the task has another network, loss or data than when the run was recorded.

    It shows in the loss of the first batch. Where the data is not installed, the record is taken as it is.
    """
    if not record["losses"]:
        return False
    try:
        now = _first_loss(name, size, record["seed"], device)
    except DataMissingError:
        return False
    except Exception:  # a user's code may raise anything; the run that follows says what
        return True
    return not math.isclose(now, record["losses"][0], rel_tol=1e-4, abs_tol=1e-7)  # which has five digits


def with_data(tasks: Iterable[tuple[str, Size]], tell: Callable[[str], None], *, needed: bool) -> set[tuple[str, Size]]:
    """The tasks whose data is installed; `tell` is told a line about each other.

    Raises:
        UsageError: there is none, and one is `needed`.
    """
    found = set()
    for name, size in dict.fromkeys(tasks):
        try:
            find_task(name, size).load()
        except DataMissingError as error:
            tell(f"{name} is left out: {error}")
        else:
            found.add((name, size))
    if needed and not found:
        raise UsageError("nothing can be run: the data is not installed")
    return found


def find_contender(name: str) -> Contender:
    """An optimizer by name; ours may be followed by options, `jorge:interval=5:damping=0`, and all by a schedule.

    >>> find_contender("jorge:interval=5").label, find_contender("sgd:schedule=cosine").label
    ('Jorge, interval=5', 'SGD, schedule=cosine')

    Raises:
        UsageError: there is none of the name, or it takes no such options, or one is not `name=value`.
    """
    base, *given = name.split(":")
    if base not in CONTENDERS:
        raise UsageError(f"unknown optimizer {base!r}: there are {', '.join(CONTENDERS)}")
    options: dict[str, Any] = {}
    for text in given:
        option, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"{name!r}: write an option as name=value, not {text!r}")
        options[option] = _value(option, value)
    schedule = options.pop("schedule", None)
    if schedule is not None and schedule not in get_args(Schedule):
        raise UsageError(f"{name!r}: there is no schedule {schedule!r}, only {', '.join(get_args(Schedule))}")
    if options and base not in _OURS:
        raise UsageError(f"{name!r}: only {', '.join(n for n in CONTENDERS if n in _OURS)} take other options")
    if schedule is not None and base == "schedule-free":
        raise UsageError(f"{name!r}: schedule-free AdamW has no schedule")
    found = CONTENDERS[base]
    label = ", ".join([found.label, *given])
    if options:
        found = variant(name, label, **{"method": _OURS[base], **options})
    if not schedule:
        return replace(found, name=name, label=label)

    def chosen(task: Task, setting: Setting) -> Options:
        if setting == "tuned":  # under this schedule, not under the task's own
            return found.options(task, "transferred") | tuned_options(task, name)
        return found.options(task, setting)

    return replace(found, name=name, label=label, options=chosen, make=_with_schedule(found.make, schedule))


def _with_schedule(make: Make, schedule: Schedule) -> Make:
    """`make`, for the task with another schedule."""

    def made(task: Task, model: nn.Module, steps: int, options: Options) -> Built:
        return make(replace(task, recipe=replace(task.recipe, schedule=schedule)), model, steps, options)

    return made


def _value(option: str, text: str) -> Any:
    """A number, a truth value, None, or a word; a dtype of torch where the option wants one."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return getattr(torch, text, text) if option.endswith("dtype") else text


@dataclass(frozen=True)
class Job:
    """One run of a comparison, in plain values.

    Args:
        task: name of the task, or `module:function`.
        size: of the task.
        optimizer: name of the optimizer, with options.
        setting: where its hyperparameters come from.
        seed: of weights and batches.
        steps: of the run.
    """

    task: str
    size: Size
    optimizer: str
    setting: Setting
    seed: int
    steps: int

    @property
    def title(self) -> str:
        """What messages call it."""
        chosen = "" if self.setting == "transferred" else f", {self.setting}"
        return f"{self.task} · {self.optimizer}{chosen} · seed {self.seed}"

    def matches(self, record: Record, settings: dict[str, Any]) -> bool:
        """Whether a record is of this very run, with the same settings."""
        task, contender = find_task(self.task, self.size), find_contender(self.optimizer)
        wanted = key(task, contender, self.setting, self.seed, self.steps)
        return record.get("key") == wanted and record.get("settings") == settings

    def renamed(self, record: Record) -> Record:
        """The record of this run, made of one with the same settings that was found under another setting's name.

        Where tuning finds nothing better than the transferred settings, the two are one run.
        """
        task, contender = find_task(self.task, self.size), find_contender(self.optimizer)
        return {**record, "setting": self.setting, "key": key(task, contender, self.setting, self.seed, self.steps)}

    def settings(self) -> dict[str, Any]:
        """The settings that the optimizer gets; raises what :meth:`Contender.build` raises."""
        return describe(find_task(self.task, self.size), find_contender(self.optimizer), self.setting, self.steps)

    def run(self, device: torch.device, watch: Watcher) -> Record:
        """Train."""
        task, contender = find_task(self.task, self.size), find_contender(self.optimizer)
        data = task.load().to(device)
        return train(task, contender, self.seed, self.steps, data, watch, self.setting)


def jobs_for(
    tasks: Sequence[str],
    size: Size,
    optimizers: Sequence[str],
    settings: Sequence[Setting],
    seeds: int,
    steps: int | None = None,
    epochs: float | None = None,
) -> list[Job]:
    """Every run, seed by seed and task by task, so that what is finished at any time is comparable.

    An optimizer `name@setting` is run in that setting alone, the others in each of `settings`.

    Raises:
        UsageError: there is no such task, optimizer or setting.
        TaskError: a user's task cannot be used.
    """
    chosen: list[tuple[str, Setting]] = []
    for text in optimizers:
        name, at, only = text.partition("@")
        if at and only not in SETTINGS:
            raise UsageError(f"{text!r}: there is no setting {only!r}, only {', '.join(SETTINGS)}")
        find_contender(name)
        chosen += [(name, setting) for setting in SETTINGS if setting == only or (not at and setting in settings)]
    lengths: dict[str, int] = {}
    for name in tasks:
        task = find_task(name, size)
        lengths[name] = steps or task.steps
        if epochs is not None:  # a batch is never larger than the data
            lengths[name] = max(1, round(epochs * max(1, len(task.load().train[0]) // task.batch_size)))
    return [
        Job(task, size, name, setting, seed, lengths[task])
        for seed, task, (name, setting) in product(range(seeds), tasks, chosen)
    ]


def end_with_parent() -> None:
    """See that this process ends when its parent is killed, which would else leave it training for hours."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def prepare_worker(threads: int) -> None:
    """Make a process one that does jobs: so many threads, and the keyboard's interrupt left to the parent."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)


def work(job: Job, device: str) -> Record:
    """Do a job in a worker process."""
    return job.run(torch.device(device), lambda *_: None)


def worker_environment(threads: int) -> None:
    """What the libraries under torch read when a worker starts; a thread that spins while it waits slows the other."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
