"""Processes that wait for jobs: torch is loaded once in each, not once a test."""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

Job = Callable[..., Any]


def _serve(rank: int, jobs: Any, results: Any) -> None:
    torch.set_num_threads(1)
    while (job := jobs.get()) is not None:
        function, world, rendezvous, args = job
        try:
            dist.init_process_group(
                "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
            )
            found = function(rank, world, *args)
            dist.barrier()
            results.put((rank, True, found))
        except BaseException:
            results.put((rank, False, traceback.format_exc()))
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()


class ProcessDiedError(Exception):
    """A process of the pool has ended in the middle of a job."""


class Pool:
    """Up to `size` processes with gloo, a process group of its own for each job.

    Where one dies all are started anew. gloo aborts now and then, of a job that is right: a thread of it lets go of a
    tensor's Python object while the interpreter ends (torch 2.13). A job is then tried once more, and its second end is
    what is told.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._start()

    def _start(self) -> None:
        context = mp.get_context("spawn")
        self._results = context.SimpleQueue()
        self._jobs = [context.SimpleQueue() for _ in range(self._size)]
        self._processes = [
            context.Process(target=_serve, args=(rank, jobs, self._results), daemon=True)
            for rank, jobs in enumerate(self._jobs)
        ]
        for process in self._processes:
            process.start()

    def run(self, world: int, function: Job, *args: Any) -> list[Any]:
        """What `function(rank, world, *args)` returns in each of `world` processes."""
        try:
            return self._run(world, function, *args)
        except ProcessDiedError:
            return self._run(world, function, *args)

    def _run(self, world: int, function: Job, *args: Any) -> list[Any]:
        with tempfile.TemporaryDirectory() as folder:
            for jobs in self._jobs[:world]:
                jobs.put((function, world, str(Path(folder) / "rendezvous"), args))
            answers = [self._next() for _ in range(world)]
        failed = [text for _, well, text in answers if not well]
        if failed:
            raise AssertionError("\n".join(failed))
        return [found for _, _, found in sorted(answers, key=lambda answer: int(answer[0]))]

    def _next(self) -> Any:
        """The next answer; none comes of a process that has died."""
        while self._results.empty():
            ended = [process for process in self._processes if not process.is_alive()]
            if ended:
                how = ended[0].exitcode
                for process in self._processes:
                    process.kill()
                    process.join()
                self._start()
                raise ProcessDiedError(f"a process ended with {how}")
            time.sleep(0.002)
        return self._results.get()

    def close(self) -> None:
        """Let all of them end."""
        for jobs in self._jobs:
            jobs.put(None)
        for process in self._processes:
            process.join(20)
            process.kill()
