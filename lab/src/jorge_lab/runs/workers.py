"""Processes that work side by side: what their libraries read, and how they end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from multiprocessing.context import SpawnContext

import torch


def processes(threads: int) -> SpawnContext:
    """What starts processes whose libraries take so many threads; an environment that says otherwise is kept."""
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # a thread that spins while it waits slows the other process
    return multiprocessing.get_context("spawn")  # a fork of a process whose torch has threads may hang


def end_with_parent() -> None:
    """See that this process ends when its parent is killed, which would else leave it training for hours."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def prepare_worker(threads: int) -> None:
    """Make a process one that does jobs: so many threads, and the keyboard's interrupt left to the parent."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
