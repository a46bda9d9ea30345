"""Checkpoints of runs that are not finished: files in a folder, one a run, from which it goes on to the same losses.

A checkpoint is a dict: what identifies the run and what it has measured so far, as in its record but not rounded, and
the states of `model`, `optimizer`, `scheduler` and of torch's random numbers. The place in the order of batches is the
number of losses.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from jorge_lab.contenders import restore
from jorge_lab.errors import LabError

Checkpoint = dict[str, Any]


class CheckpointError(LabError):
    """A checkpoint cannot be read; the message says why."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of runs, by the keys of their records.

    Args:
        folder: where they are; it is made when the first is written.
        every: seconds of training between two of a run.
    """

    folder: Path
    every: float

    def path(self, key: Sequence[Any]) -> Path:
        """The file of a run."""
        return self.folder / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]}.pt"

    def write(self, key: Sequence[Any], checkpoint: Checkpoint) -> None:
        """Replace a run's checkpoint; cut off at any time, it leaves the earlier one or the new one, whole."""
        path = self.path(key)
        unfinished = path.with_suffix(".tmp")
        self.folder.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)

    def read(self, key: Sequence[Any]) -> Checkpoint | None:
        """A run's checkpoint, None where there is none.

        Raises:
            CheckpointError: it cannot be read.
        """
        path = self.path(key)
        if not path.exists():
            return None
        try:
            # Some opponents keep objects of their own in their states, which `weights_only` refuses.
            found = torch.load(path, weights_only=False)
        except Exception as error:  # a file that was cut off or is something else raises all sorts
            raise CheckpointError(f"cannot be read: {type(error).__name__}: {error}") from None
        if not isinstance(found, dict):
            raise CheckpointError(f"holds a {type(found).__name__}, not a dict")
        return found

    def remove(self, key: Sequence[Any]) -> None:
        """Remove a run's checkpoint, if there is one, and what was being written."""
        for path in (self.path(key), self.path(key).with_suffix(".tmp")):
            path.unlink(missing_ok=True)


def states(
    model: nn.Module, optimizer: torch.optim.Optimizer, scheduler: LRScheduler, device: torch.device
) -> Checkpoint:
    """What training changes, to be restored by :func:`restore_states`."""
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "random": torch.get_rng_state(),
        "cuda random": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_states(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler,
    device: torch.device,
) -> None:
    """Put back what :func:`states` took, into what was built as for the beginning of the run.

    Raises:
        whatever `load_state_dict` does where the states are of another model or optimizer.
    """
    model.load_state_dict(checkpoint["model"])
    restore(optimizer, checkpoint["optimizer"])
    scheduler.load_state_dict(checkpoint["scheduler"])
    torch.set_rng_state(checkpoint["random"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(checkpoint["cuda random"], device)
