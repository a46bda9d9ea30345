"""Fashion-MNIST, all 70,000 pictures of clothes, with a small residual network."""

from __future__ import annotations

from functools import partial

from torch import nn

from jorge_lab.tasks import mnist
from jorge_lab.tasks.data.fashion import ORIGIN, load
from jorge_lab.tasks.nets.residual import BasicBlock
from jorge_lab.tasks.task import FirstOrder, Size, Task

#: Residual blocks in each of the three stages.
_BLOCKS = {"smoke": 1, "small": 1, "full": 3}
_WIDTHS = (16, 32, 64)


def build(blocks: int) -> nn.Module:
    """A residual network for small pictures (He et al. 2016, section 4.2) of `6 × blocks + 2` layers."""
    width = _WIDTHS[0]
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    for stage, after in enumerate(_WIDTHS):
        for block in range(blocks):
            layers.append(BasicBlock(width, after, stride=2 if stage and not block else 1))
            width = after
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def task(size: Size) -> Task:
    """The task at a size."""
    return Task(
        name="fashion",
        title="Fashion-MNIST, residual network",
        origin=ORIGIN,
        why="Batch normalization, skip connections and SGD with step decay: the setting that Jorge was introduced in.",
        size=size,
        recipe=FirstOrder(
            baseline="sgd",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4},
            adamw={"lr": 1e-2, "weight_decay": 1e-2},
            schedule="step",
        ),
        steps={"smoke": 30, "small": 300, "full": 10_000}[size],
        batch_size=128,
        metric=("accuracy", "higher"),
        load=partial(load, size),
        model=partial(build, _BLOCKS[size]),
        loss=mnist.loss,
        score=mnist.correct,
    )
