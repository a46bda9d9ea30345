"""Python's own standard library, character by character, with a transformer as they are built today."""

from __future__ import annotations

from functools import partial

from jorge_lab.tasks.data.python import CONTEXT, load
from jorge_lab.tasks.nets.transformer import Transformer, loss, summed_loss
from jorge_lab.tasks.task import FirstOrder, Size, Task


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
