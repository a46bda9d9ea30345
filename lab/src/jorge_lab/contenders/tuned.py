"""What `jorge tune` found: `tuned.json`, by task, size and contender, of the package or where the user put it."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from jorge_lab.tasks.task import Task

#: What comes with the package.
TUNED = Path(str(files("jorge_lab.contenders") / "tuned.json"))
#: Names another file instead; worker processes inherit it.
VARIABLE = "JORGE_TUNED"


def tuned_file() -> Path:
    """The file that the setting "tuned" is read from."""
    return Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else TUNED


def use_tuned(path: Path) -> None:
    """Read the setting "tuned" from this file, here and in processes that are started from here.

    Raises:
        ValueError: it is not there.
    """
    if not path.is_file():
        raise ValueError(f"--tuned {path}: there is no such file; jorge tune --tuned {path} writes it")
    os.environ[VARIABLE] = str(path)


def read_tuned(path: Path | None = None) -> dict[str, Any]:
    """All that was tuned, `{task: {size: {contender: {"options": …, "loss": …, …}}}}`; empty where nothing was.

    Args:
        path: of the file; :func:`tuned_file` if None.

    Raises:
        ValueError: the file is not what `jorge tune` writes.
    """
    path = path or tuned_file()
    try:
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} is not what jorge tune writes: it holds a {type(found).__name__}, not an object")
    return found


def tuned_options(task: Task, contender: str) -> dict[str, Any]:
    """The options that were found best for a contender on a task.

    Raises:
        LookupError: it was not tuned there, or when the task had other steps or batches; the message says how to.
    """
    remedy = f"run `jorge tune {task.name} --optimizers {contender} --size {task.size}` first"
    try:
        entry: dict[str, Any] = read_tuned()[task.name][task.size][contender]
        options: dict[str, Any] = entry["options"]
    except KeyError:
        raise LookupError(f"{contender} was not tuned on {task.name} at size {task.size}: {remedy}") from None
    for name, now in (("steps", task.steps), ("batch_size", task.batch_size)):
        if entry.get(name, now) != now:
            raise LookupError(
                f"{contender} was tuned on {task.name} at size {task.size} with {name} {entry[name]}, "
                f"which is {now} now: {remedy}"
            )
    return options
