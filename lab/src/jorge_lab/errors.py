"""What went wrong in a way that the user of a command can mend."""

import sysconfig
import traceback
from pathlib import Path

import jorge


class LabError(Exception):
    """The message says what is wrong and what to do; commands print it and end with status 2."""


class UsageError(LabError):
    """Something that the caller asked for cannot be done; the message says what to do."""


#: Where code is that no user of a command has written.
_LIBRARIES = (
    *(sysconfig.get_path(name) for name in ("stdlib", "purelib")),
    *(str(Path(str(each)).parent) for each in (__file__, jorge.__file__)),
)


def place_of(error: BaseException) -> str | None:
    """File and line of the last of the user's own code that an error went through; `None` where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith((*_LIBRARIES, "<"))]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def said(error: BaseException) -> str:
    """An error in a line: its kind, its message, and where in the user's code it was raised."""
    lines = str(error).strip().splitlines() or ["no message"]
    notes: list[str] = getattr(error, "__notes__", [])
    place = notes[-1] if notes else place_of(error)
    return f"{type(error).__name__}: {lines[0]}" + (f" ({place})" if place else "")
