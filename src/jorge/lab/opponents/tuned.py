"""What `jorge tune` found: `tuned.json`, by task, size and contender, of the package or where the user put it."""

from __future__ import annotations

import json
import os
from importlib.resources import files
from pathlib import Path
from typing import Any

#: What comes with the package.
TUNED = Path(str(files("jorge.lab") / "tuned.json"))
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


def tuned_options(task: str, size: str, contender: str) -> dict[str, Any]:
    """The options that were found best for a contender on a task.

    Raises:
        LookupError: it was not tuned there; the message says how to.
    """
    try:
        options: dict[str, Any] = read_tuned()[task][size][contender]["options"]
    except KeyError:
        raise LookupError(
            f"{contender} was not tuned on {task} at size {size}: run "
            f"`jorge tune {task} --optimizers {contender} --size {size}` first"
        ) from None
    return options
