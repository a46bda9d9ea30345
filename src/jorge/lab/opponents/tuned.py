"""What `jorge tune` found, as it is kept with the package: `tuned.json`, by task, size and contender."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

#: What comes with the package.
TUNED = files("jorge.lab") / "tuned.json"


def read_tuned() -> dict[str, Any]:
    """All that was tuned, `{task: {size: {contender: {"options": …, "loss": …, …}}}}`; empty where nothing was."""
    found: dict[str, Any] = json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.is_file() else {}
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
