"""A vision transformer on Fashion-MNIST (Dosovitskiy et al. 2021, at the size of the pictures)."""

from __future__ import annotations

from functools import partial

from jorge_lab.tasks import mnist
from jorge_lab.tasks.data import fashion
from jorge_lab.tasks.nets.vision_transformer import Shape, VisionTransformer
from jorge_lab.tasks.task import FirstOrder, Size, Task

SHAPES: dict[Size, Shape] = {
    "smoke": Shape(patch=7, width=64, blocks=2, heads=2),
    "small": Shape(patch=7, width=96, blocks=4, heads=4),
    "full": Shape(patch=4, width=128, blocks=4, heads=4),
}


def task(size: Size) -> Task:
    """The task at a size."""
    return Task(
        name="vit",
        title="Fashion-MNIST, vision transformer",
        origin=fashion.ORIGIN,
        why="Attention without convolutions or batch normalization, on pictures: AdamW's home; many equal matrices.",
        size=size,
        recipe=FirstOrder(
            baseline="adamw",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            adamw={"lr": 3e-3, "weight_decay": 0.05},
            schedule="cosine",
            warmup=0.1,
        ),
        steps={"smoke": 60, "small": 400, "full": 12000}[size],
        batch_size=128,
        metric=("accuracy", "higher"),
        load=partial(fashion.load, size),
        model=partial(VisionTransformer, SHAPES[size]),
        loss=mnist.loss,
        score=mnist.correct,
    )
