"""Tuning with Optuna: the same number of trials, the same relative ranges and the same sampler for every optimizer.

A study is a task at a size and an optimizer. Its first trial has the transferred settings; each option of the
optimizer's `space` is then searched within a factor of 10 of its transferred value, each way. A trial is one run of
the task with :data:`SEED`, which no comparison uses, and its value the final smoothed training loss, infinite where
the run diverged.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
import torch
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from jorge_lab.contenders import Contender, UnsuitableError
from jorge_lab.contenders.contender import Options, module_version
from jorge_lab.runs.environment import environment
from jorge_lab.runs.run import Watcher, first_loss, train
from jorge_lab.statistics.reaching import smooth
from jorge_lab.tasks.task import Data, Task

#: Of weights and batches; comparisons count theirs from 0.
SEED = 1000
#: How far a search goes each way from the transferred value.
FACTOR = 10.0
#: What is searched where the transferred value is 0, which has no range around it.
FROM_ZERO = (0.0, 1e-4, 1e-3, 1e-2, 1e-1)
#: Reports of a trial to the pruner.
REPORTS = 20
#: No trial is pruned before this report, as a good lr may start slowly, nor before so many are complete. On the trials
#: that are committed it takes two thirds of the time of 10 and 4 (`python -m jorge_lab.tuning.pruning`).
NEVER_PRUNED, COMPLETE_FIRST = 3, 2
#: Trials that are drawn at random.
_RANDOM = 4
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def open_storage(url: str) -> optuna.storages.BaseStorage:
    """Where trials are kept: an Optuna URL such as `sqlite:///trials.db`, or the path of a journal file.

    Several processes and machines may share either.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "://" in url:
        return optuna.storages.get_storage(url)
    Path(url).parent.mkdir(parents=True, exist_ok=True)
    return optuna.storages.JournalStorage(JournalFileBackend(url))


def tune(
    tasks: Iterable[Task],
    contenders: Sequence[Contender],
    trials: int,
    storage: optuna.storages.BaseStorage,
    *,
    device: torch.device | None = None,
    share: bool = False,
    tell: Callable[[str], None] = lambda _: None,
) -> None:
    """Go on until the study of each task and contender has `trials` finished trials, pruned ones among them.

    Args:
        tasks: what to tune on, each at its size.
        contenders: what to tune; one that is not installed, or cannot train a task's model, is told and left out.
        trials: of each study in all, with those that are in the storage already.
        storage: of :func:`open_storage`.
        device: to train on; the CPU if None.
        share: other processes, maybe on other machines, work on the same storage: leave out trials that they have
            begun. Those of a process that was killed are then never done.
        tell: is told a line about each trial.

    Raises:
        DataMissingError: a task's data is not installed.
        ValueError: the storage has a study of another recipe.
    """
    device = device or torch.device("cpu")
    for task in tasks:
        data = task.load().to(device)
        for contender in contenders:
            if missing := contender.missing():
                tell(missing)
                continue
            study = open_study(task, contender, storage, data)
            try:
                while _wants(study, trials, share):
                    if trial := _run(study, task, contender, data, trials, share):
                        tell(_line(study, trial))
            except UnsuitableError as error:
                tell(f"{study.study_name} is left out: {error}")
            except Exception as error:  # an opponent's fault must not cost what is still to be tuned
                tell(f"{study.study_name} failed, the others go on. {type(error).__name__}: {error}")


def open_study(task: Task, contender: Contender, storage: optuna.storages.BaseStorage, data: Data) -> optuna.Study:
    """The study of a task and a contender, with the transferred settings as its first trial; `data` is the task's.

    Raises:
        ValueError: the study that is there has other transferred settings, or is of another task: of other steps or
            batches, or with another loss of its first batch.
    """
    transferred = _searched(task, contender)
    about: dict[str, Any] = {
        "task": task.name,
        "size": task.size,
        "contender": contender.name,
        "steps": task.steps,
        "batch_size": task.batch_size,
        "first_loss": first_loss(task, SEED, data),
        "transferred": transferred,
        "requires": contender.requires,
    }
    study = optuna.create_study(
        study_name=study_name(task, contender),
        storage=storage,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=COMPLETE_FIRST, n_warmup_steps=NEVER_PRUNED),
        load_if_exists=True,
    )
    there = study.user_attrs
    for name, value in about.items():
        if not _same(there.get(name, value), value):
            raise ValueError(
                f"the trials of {study.study_name} are of another recipe, {name} {there[name]} instead of {value}: "
                "start with another --storage or --out"
            )
    for name, value in about.items():
        study.set_user_attr(name, value)
    if not any(_is_transferred(study, trial) for trial in study.get_trials(deepcopy=False)):
        study.enqueue_trial(transferred)
    return study


def study_name(task: Task, contender: Contender) -> str:
    """What the study of a task and a contender is called in a storage."""
    return f"{task.name}/{task.size}/{contender.name}"


def _same(there: object, now: object) -> bool:
    """Whether a study was made with what is now; numbers may differ by what another machine rounds."""
    if isinstance(there, float) and isinstance(now, float):
        return math.isclose(there, now, rel_tol=1e-3)
    return there == now


def _searched(task: Task, contender: Contender) -> dict[str, float]:
    options = contender.options(task, "transferred")
    return {name: options[name] for name in contender.space}


def _is_transferred(study: optuna.Study, trial: FrozenTrial) -> bool:
    """Whether a trial, which may be waiting, has the transferred settings."""
    params = trial.system_attrs.get("fixed_params", trial.params)
    return bool(params == study.user_attrs["transferred"])


def _wants(study: optuna.Study, trials: int, share: bool) -> bool:
    """Whether another trial is to be run; that with the transferred settings is, however many the others are."""
    there = study.get_trials(deepcopy=False)
    counted = (*_FINISHED, TrialState.RUNNING) if share else _FINISHED
    if not any(_is_transferred(study, t) and t.state in (*counted, TrialState.WAITING) for t in there):
        study.enqueue_trial(study.user_attrs["transferred"])
        return True
    waiting = any(t.state is TrialState.WAITING for t in there)
    return waiting or sum(t.state in counted for t in there) < trials


def _run(
    study: optuna.Study, task: Task, contender: Contender, data: Data, trials: int, share: bool
) -> FrozenTrial | None:
    """One trial, told to the study whatever comes of it; None where another process was first to begin the last one."""
    trial = study.ask()
    if share and _is_surplus(study, trial, trials):
        study.tell(trial, state=TrialState.FAIL)
        return None
    # By the trial's number, which is its own among all processes: a sampler seeded once would draw its first values
    # again whenever the command goes on, and in each process.
    study.sampler = optuna.samplers.TPESampler(seed=1000 * trial.number, n_startup_trials=_RANDOM)
    try:
        value = _value(study, trial, task, contender, data)
    except optuna.TrialPruned:
        return study.tell(trial, state=TrialState.PRUNED)
    except BaseException:
        study.tell(trial, state=TrialState.FAIL)
        raise
    return study.tell(trial, value)


def _is_surplus(study: optuna.Study, trial: optuna.Trial, trials: int) -> bool:
    """Whether processes that asked at the same time have together begun one trial too many, and this is the later."""
    there = study.get_trials(deepcopy=False)
    before = [other for other in there[: trial.number] if other.state in (*_FINISHED, TrialState.RUNNING)]
    if _is_transferred(study, there[trial.number]):
        return any(_is_transferred(study, other) for other in before)
    return len(before) >= trials


def final_loss(task: Task, contender: Contender, options: Options, data: Data, watch: Watcher) -> float:
    """Smoothed training loss at the end of a run with these options and :data:`SEED`; infinite where it diverged."""
    record = train(task, dataclasses.replace(contender, options=lambda *_: options), SEED, task.steps, data, watch)
    return math.inf if record["diverged_at"] else smooth(record["losses"], record["steps"])[-1]


def _value(study: optuna.Study, trial: optuna.Trial, task: Task, contender: Contender, data: Data) -> float:
    transferred = contender.options(task, "transferred")
    chosen = transferred | {name: _suggest(trial, name, transferred[name]) for name in contender.space}
    never_pruned = trial.params == study.user_attrs["transferred"]
    trial.set_user_attr("environment", environment(data.train[0].device))
    trial.set_user_attr("package", module_version(contender.requires))
    window = max(1, task.steps // REPORTS)
    recent: list[float] = []

    def watch(step: int, loss: float, _: float | None) -> None:
        recent.append(loss)
        if step % window == 0:
            trial.report(fmean(recent), step // window)
            recent.clear()
            if not never_pruned and trial.should_prune():
                raise optuna.TrialPruned

    return final_loss(task, contender, chosen, data, watch)


def _suggest(trial: optuna.Trial, name: str, transferred: float) -> float:
    if transferred == 0:
        value: float = trial.suggest_categorical(name, FROM_ZERO)
        return value
    return trial.suggest_float(name, transferred / FACTOR, transferred * FACTOR, log=True)


def _line(study: optuna.Study, trial: FrozenTrial) -> str:
    values = ", ".join(f"{name} {value:.3g}" for name, value in trial.params.items())
    came = "pruned" if trial.state is TrialState.PRUNED else f"loss {trial.value:.5g}"
    if trial.state is TrialState.COMPLETE and _is_transferred(study, trial):
        came += ", transferred"
    return f"{study.study_name}, trial {trial.number + 1}: {values}: {came}"
