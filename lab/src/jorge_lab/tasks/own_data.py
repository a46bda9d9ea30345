"""The examples of a user's own task, in whichever usual form they come, as tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from jorge_lab.errors import LabError
from jorge_lab.tasks.task import Batch, Data


class TaskError(LabError):
    """A user's task cannot be used; the message says what is wrong with it and what to do."""


@dataclass(frozen=True)
class Examples:
    """What was read.

    Args:
        data: training and validation examples.
        names: of the tensors, where examples are mappings.
        batch_size: of the training loader, if it is one.
    """

    data: Data
    names: tuple[str, ...] | None = None
    batch_size: int | None = None


def read(task: str, data: Any) -> Examples:
    """Training and validation examples, a pair, all in memory.

    Each is a tensor or an array whose first dim counts examples, or a tuple or mapping of such; or what has a length
    and gives an example for an index, a tensor or a tuple or mapping of tensors and numbers; or a data loader of that,
    of which the collation and the batch size are taken too.

    Raises:
        TaskError: they are of no such kind.
    """
    if isinstance(data, Data):
        return Examples(data)
    if not isinstance(data, Sequence) or len(data) != 2:
        raise TaskError(f"{task}: data must be a pair, training and validation examples, got {type(data).__name__}")
    if all(isinstance(part, Tensor | np.ndarray) for part in data) and (
        data[1].dtype != data[0].dtype or data[1].shape[1:] != data[0].shape[1:]
    ):
        raise TaskError(
            f"{task}: data is a pair of training and validation examples, not of inputs and targets: give "
            "((inputs, targets), (validation inputs, validation targets))"
        )
    (train, names), (validation, others) = (_read(task, part) for part in data)
    if names != others:
        raise TaskError(f"{task}: training examples have {_said(names)}, validation examples {_said(others)}")
    if not len(train[0]) or not len(validation[0]):
        raise TaskError(f"{task}: {len(train[0])} training and {len(validation[0])} validation examples are too few")
    return Examples(Data(train, validation), names, data[0].batch_size if isinstance(data[0], DataLoader) else None)


def _said(names: Sequence[str] | None) -> str:
    return "no names" if names is None else f"the entries {', '.join(names)}"


def _read(task: str, part: Any) -> tuple[Batch, tuple[str, ...] | None]:
    """The tensors, and their names where they have some."""
    found = _columns(task, part)
    if found is None and (found := _columns(task, _collated(task, part))) is None:
        raise TaskError(f"{task}: an example must be a tensor, or a tuple or mapping of tensors and numbers")
    if len({len(t) for t in found[0]}) != 1:
        counts = ", ".join(str(len(t)) for t in found[0])
        raise TaskError(f"{task}: tensors of {counts} examples do not go together")
    return found


def _columns(task: str, part: Any) -> tuple[Batch, tuple[str, ...] | None] | None:
    """Tensors whose first dim counts examples, and their names; `None` where it is something else."""
    if isinstance(part, Mapping):
        found = _columns(task, tuple(part.values()))
        return found and (found[0], tuple(part))
    if isinstance(part, Tensor | np.ndarray):
        part = (part,)
    if not isinstance(part, Sequence) or not part or not all(isinstance(t, Tensor | np.ndarray) for t in part):
        return None
    try:
        tensors = tuple(torch.as_tensor(t) for t in part)
    except TypeError as error:  # an array of strings or objects
        raise TaskError(f"{task}: {error}") from error
    if not all(t.dim() for t in tensors):
        raise TaskError(f"{task}: a tensor without dims holds no examples: its first dim must count them")
    return tensors, None


def _collated(task: str, part: Any) -> Any:
    """All examples in one batch."""
    collate = default_collate
    if isinstance(part, DataLoader):
        part, collate = part.dataset, part.collate_fn or default_collate
    if not hasattr(part, "__len__") or not hasattr(part, "__getitem__"):
        raise TaskError(
            f"{task}: examples must be tensors, arrays, a dataset with a length, or a loader of one, "
            f"got {type(part).__name__}"
        )
    examples = [part[i] for i in range(len(part))]
    if not examples:
        raise TaskError(f"{task}: a {type(part).__name__} without examples")
    try:
        return collate(examples)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TaskError(
            f"{task}: the examples cannot be put into one batch: {error}. Give a data loader whose collate_fn can"
        ) from error
