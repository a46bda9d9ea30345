"""What is said of an error that a user's code raised: a line, with the place in that code."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from pathlib import Path

import torch

#: Where code is that no user of a command has written, beside this package.
_LIBRARIES = (*(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")), Path(torch.__file__).parent)
_OURS = ("jorge", "jorge_lab")


def place_of(error: BaseException) -> str | None:
    """File and line of the last of the user's own code that an error went through; `None` where there is none."""
    own = [f for f in traceback.extract_tb(error.__traceback__) if not _is_foreign(f)]
    return f"{own[-1].filename}:{own[-1].lineno}" if own else None


def _is_foreign(frame: traceback.FrameSummary) -> bool:
    libraries = tuple(f"{path}{os.sep}" for path in (*_LIBRARIES, *_homes()))
    return frame.filename.startswith((*libraries, "<"))


def _homes() -> list[Path]:
    """The folders of this package, and of the laboratory where it is loaded."""
    return [Path(str(sys.modules[name].__file__)).parent for name in _OURS if name in sys.modules]


def said(error: BaseException) -> str:
    """An error in a line: its kind, its message, and where in the user's code it was raised.

    An error of another process has lost its traceback, and brings the place along as `place`.
    """
    lines = str(error).strip().splitlines() or ["no message"]
    place = getattr(error, "place", None) or place_of(error)
    return f"{type(error).__name__}: {lines[0]}" + (f" ({place})" if place else "")
