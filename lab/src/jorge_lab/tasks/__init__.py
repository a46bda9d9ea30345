"""The tasks that come with the laboratory, by name: a function each, which builds it at a size."""

from __future__ import annotations

from collections.abc import Callable

from jorge_lab.tasks import autoencoder, brain, fashion, mnist, mnist1d, python, scenes, shakespeare, vit
from jorge_lab.tasks.task import Size, Task

TASKS: dict[str, Callable[[Size], Task]] = {
    "mnist": mnist.task,
    "fashion": fashion.task,
    "autoencoder": autoencoder.task,
    "mnist1d-mlp": mnist1d.mlp_task,
    "mnist1d-conv": mnist1d.conv_task,
    "shakespeare": shakespeare.task,
    "python": python.task,
    "brain": brain.task,
    "scenes": scenes.task,
    "vit": vit.task,
}
