"""The tasks that come with the laboratory, by name."""

from __future__ import annotations

from jorge.lab.task import Task
from jorge.lab.tasks.autoencoder import AUTOENCODER
from jorge.lab.tasks.mnist import MNIST
from jorge.lab.tasks.shakespeare import SHAKESPEARE

TASKS: dict[str, Task] = {task.name: task for task in (MNIST, AUTOENCODER, SHAKESPEARE)}
