"""The sources of Python's standard library."""

from __future__ import annotations

import sys
import sysconfig
from functools import cache
from pathlib import Path

from jorge_lab.tasks.data.text import rows
from jorge_lab.tasks.task import Data, DataMissingError

CONTEXT = 128
#: One in so many modules, in alphabetical order, validates: whole files that training never sees.
_EVERY = 20
_TRAINING_CHARACTERS = 4_000_000


def modules() -> list[Path]:
    """The library's single-file modules, sorted; packages are left out, as many of them are tables, data or tests.

    Names that are not the language's own, such as `_sysconfigdata_…`, differ from machine to machine and are left out.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    return sorted(path for path in folder.glob("*.py") if path.stem in sys.stdlib_module_names)


@cache
def load(validation_rows: int) -> Data:
    """Rows of 128 characters and those that follow each: 4 MB for training, parts of other modules for validation.

    Raises:
        DataMissingError: this Python has its library compiled or in an archive, without sources.
    """
    paths = modules()
    if not paths:
        raise DataMissingError(
            "the task python reads the sources of Python's standard library, which this Python comes without: install "
            "one that has them, on Debian apt-get install libpython3-stdlib"
        )
    texts = [path.read_text("utf-8", "replace") for path in paths]
    train = "\n".join(text for i, text in enumerate(texts) if i % _EVERY)
    codes, following = rows("\n".join(texts[::_EVERY]), CONTEXT)
    spread = slice(0, None, len(codes) // validation_rows)
    validation = codes[spread][:validation_rows], following[spread][:validation_rows]
    return Data(rows(train[:_TRAINING_CHARACTERS], CONTEXT), validation)
