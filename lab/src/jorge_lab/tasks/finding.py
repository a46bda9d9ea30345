"""A task by its name, and which tasks have their data."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache

from jorge_lab.errors import UsageError
from jorge_lab.tasks import TASKS, own
from jorge_lab.tasks.task import DataMissingError, Size, Task


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
