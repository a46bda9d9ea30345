"""From the trials of `jorge tune` to `tuned.json`, from which the setting "tuned" is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from jorge_lab.contenders.tuned import read_tuned, tuned_file


def see_writable(path: Path) -> None:
    """See before hours of trials that their best can be written.

    Raises:
        OSError: it cannot.
        ValueError: what is there is not of :func:`write_tuned`.
    """
    read_tuned(path)
    there = path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.open("a").close()
    if not there:
        path.unlink()


def write_tuned(
    storage: optuna.storages.BaseStorage, path: Path | None = None, studies: Iterable[str] | None = None
) -> dict[str, Any]:
    """Write the best options of studies into a JSON file, beside what is there of others; returns all of it.

    Args:
        storage: of the trials.
        path: of the file; the one that "tuned" is read from if None.
        studies: their names; all that are in the storage if None. One that is not there is left out.

    An entry, at `[task][size][contender]`, has the options that were searched, the best final smoothed loss and that of
    the transferred settings (None where those diverged), the finished trials, the command that repeats it, and machine,
    versions and date of the best trial. A study of which no trial converged is left out.
    """
    path = path or tuned_file()
    found = read_tuned(path)
    there = optuna.get_all_study_names(storage)
    for name in there if studies is None else [name for name in studies if name in there]:
        study = optuna.load_study(study_name=name, storage=storage)
        entry = _entry(study)
        if entry is not None:
            about = study.user_attrs
            found.setdefault(about["task"], {}).setdefault(about["size"], {})[about["contender"]] = entry
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    return found


def _entry(study: optuna.Study) -> dict[str, Any] | None:
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    values = {trial.number: value for trial in complete if (value := trial.value) is not None and math.isfinite(value)}
    if not values:
        return None
    best = min((trial for trial in complete if trial.number in values), key=lambda trial: values[trial.number])
    about = study.user_attrs
    unchanged = [values[t.number] for t in complete if t.params == about["transferred"] and t.number in values]
    finished = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED)))
    where = best.user_attrs["environment"]
    return {
        "options": best.params,
        "loss": values[best.number],
        "transferred_loss": unchanged[0] if unchanged else None,
        "trials": finished,
        **{name: about[name] for name in ("steps", "batch_size") if name in about},
        "command": f"jorge tune {about['task']} --optimizers {about['contender']} --trials {finished} "
        f"--size {about['size']}",
        "machine": f"{where['machine']}, {where['device']}",
        "versions": {**{name: where[name] for name in ("jorge", "torch", "python")}, **best.user_attrs["package"]},
        "date": where["date"],
    }
