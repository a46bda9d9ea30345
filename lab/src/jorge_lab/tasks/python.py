"""Python's own standard library, character by character, with a transformer as they are built today."""

from __future__ import annotations

import sys
import sysconfig
from functools import cache, partial
from pathlib import Path

from jorge_lab.tasks.task import Data, DataMissingError, FirstOrder, Size, Task
from jorge_lab.tasks.nets.transformer import Transformer, loss, rows, summed_loss

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


def task(size: Size) -> Task:
    """The task at a size: four layers of 96 features, or eight of 256."""
    width, layers, heads = (256, 8, 8) if size == "full" else (96, 4, 4)
    return Task(
        name="python",
        title="Python's standard library, character transformer",
        origin="the sources of the Python that runs the task, so that the text depends on its version (PSF-2.0)",
        why="A deeper transformer with rotary positions, SwiGLU and tied embeddings, on text that any machine has.",
        size=size,
        recipe=FirstOrder(
            baseline="adamw",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
            adamw={"lr": 3e-3, "betas": (0.9, 0.95), "weight_decay": 0.1},
            schedule="cosine",
            warmup=0.05,
        ),
        steps={"smoke": 20, "small": 500, "full": 5000}[size],
        batch_size=16 if size == "full" else 8,
        metric=("validation loss", "lower"),
        load=partial(load, 32 if size == "smoke" else 128),
        model=partial(Transformer, CONTEXT, width, layers, heads, modern=True),
        loss=loss,
        score=summed_loss,
    )
