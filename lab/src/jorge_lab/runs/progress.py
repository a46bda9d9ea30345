"""Live progress of a comparison: bars on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from jorge_lab.runs.run import Watcher

#: Opens the progress of one run: title, steps, name of the metric.
Watch = Callable[[str, int, str], AbstractContextManager[Watcher]]

#: Seconds between two plain lines of one run.
_PLAIN_EVERY = 10.0


@contextmanager
def progress(console: Console, runs: int) -> Iterator[Watch]:
    """Progress over `runs` runs; the watcher of each is told every step."""
    if console.is_terminal:
        with _bars(console, runs) as watch:
            yield watch
    else:
        yield _plain(console)


def _said(loss: float, metric: float | None, name: str, rate: float) -> str:
    shown = f"loss {loss:.4f}"
    if metric is not None:
        shown += f"  {name} {metric:.4f}"
    return f"{shown}  {rate:.0f} steps/s"


@contextmanager
def _bars(console: Console, runs: int) -> Iterator[Watch]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=8, table_column=Column(min_width=8)),
        TimeRemainingColumn(compact=True, table_column=Column(min_width=5)),
        TextColumn("{task.fields[said]}", table_column=Column(no_wrap=True)),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as bars:
        overall = bars.add_task("all runs", total=runs, said="")

        @contextmanager
        def watch(title: str, steps: int, name: str) -> Iterator[Watcher]:
            bar = bars.add_task(title, total=steps, said="")
            started, before = time.perf_counter(), None

            def step(done: int, loss: float, metric: float | None) -> None:
                nonlocal before
                if before is None:  # what was done before a run was cut off is no part of the pace
                    before = done - 1
                    bars.reset(bar, completed=before)
                rate = (done - before) / (time.perf_counter() - started)
                bars.update(bar, completed=done, said=_said(loss, metric, name, rate))

            try:
                yield step
            finally:
                bars.stop_task(bar)
                bars.advance(overall)

        yield watch


def _plain(console: Console) -> Watch:
    @contextmanager
    def watch(title: str, steps: int, name: str) -> Iterator[Watcher]:
        started = spoken = time.perf_counter()
        before = None

        def step(done: int, loss: float, metric: float | None) -> None:
            nonlocal spoken, before
            before = done - 1 if before is None else before
            now = time.perf_counter()
            if done < steps and now - spoken < _PLAIN_EVERY:
                return
            spoken = now
            rate = (done - before) / (now - started)
            left = (steps - done) / rate
            console.print(f"{title}  step {done}/{steps}  {_said(loss, metric, name, rate)}  {left:.0f} s left")

        yield step

    return watch


class Counter:
    """A line a finished run, for runs that go side by side."""

    def __init__(self, console: Console, runs: int) -> None:
        self.console = console
        self.runs = runs
        self.done = 0
        self.started = time.perf_counter()

    def finished(self, title: str) -> None:
        """Say that a run is finished, and how long the others will take."""
        self.done += 1
        left = (time.perf_counter() - self.started) / self.done * (self.runs - self.done)
        self.console.print(f"{self.done}/{self.runs}  {title}  about {left / 60:.0f} min left")
