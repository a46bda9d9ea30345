"""What a direction's length says of it: `python -m jorge_lab.studies.lengths TASK …`.

Two changes of Jorge's step help some trainings and harm others: to divide each direction D by its length before the
momentum averages it, and to divide the rows of the momentum by what D's rows are. The first is right where a long
direction points no more where the others do than a short one, the second where a large row does not. Trains Jorge as
transferred, with neither, and prints a row a task of what would tell:

- *falls by*: decades from the mean length of the first tenth of the steps to that of the last;
- *varies by*: decades of standard deviation around the running mean;
- *agrees*: the cosine between a direction and the running mean of those before it, each at length 1;
- *long − short*: that cosine of the longest third of the steps, over the running mean, less that of the shortest;
- *rows*: over the rows of a matrix, the correlation between the logarithms of D's mean square, and of the share of it
  that the running mean of D keeps.

All are means over the matrices, the last one over the linear maps among them.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import jorge.step
from jorge.routing import is_linear_map
from jorge_lab.contenders import CONTENDERS
from jorge_lab.runs.environment import environment
from jorge_lab.runs.run import train
from jorge_lab.runs.workers import prepare_worker, processes
from jorge_lab.tasks.finding import find_task
from jorge_lab.tasks.task import Task

#: The running means remember ten steps, as the momentum does; rows are looked at so often.
_KEPT, _EVERY = 0.9, 20
_TINY = 1e-30


@dataclass
class Seen:
    """What was seen of the directions of a shape group, `[count]` a step each, but for `rows`.

    Args:
        lengths: of the directions.
        ratios: the logarithm of each over their running mean.
        cosines: to the running mean of earlier directions.
        rows: correlations.
    """

    lengths: list[Tensor] = field(default_factory=list)
    ratios: list[Tensor] = field(default_factory=list)
    cosines: list[Tensor] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    _unit: Tensor | None = None
    _length: Tensor | None = None
    _mean: Tensor | None = None
    _square: Tensor | None = None

    def take(self, directions: Tensor, *, linear: bool) -> None:
        """Take in a step's directions, `[count, M, N, …]`."""
        matrices = directions.flatten(2) if directions.dim() > 3 else directions
        length = matrices.flatten(1).norm(dim=1)
        unit = matrices / length.clamp(min=_TINY).view(-1, 1, 1)
        squares = matrices.square().mean(2)
        if self._unit is None or self._length is None or self._mean is None or self._square is None:
            self._unit, self._length, self._mean, self._square = unit.clone(), length, matrices.clone(), squares
            return
        self.lengths.append(length)
        self.ratios.append((length.clamp(min=_TINY) / self._length.clamp(min=_TINY)).log())
        self.cosines.append((unit * self._unit).sum((1, 2)) / self._unit.flatten(1).norm(dim=1).clamp(min=_TINY))
        for mean, value in ((self._unit, unit), (self._mean, matrices), (self._square, squares)):
            mean.lerp_(value, 1 - _KEPT)
        self._length = self._length.lerp(length, 1 - _KEPT)
        if linear and len(self.lengths) % _EVERY == 0 and matrices.shape[1] > 2:
            share = self._mean.square().mean(2) / self._square.clamp(min=_TINY)
            for v, kept in zip(self._square, share, strict=True):
                here = (v > 1e-8 * v.max()) & (kept > 0)
                pair = torch.stack([v[here].log(), kept[here].log()])
                found = torch.corrcoef(pair)[0, 1] if pair.shape[1] > 2 else torch.tensor(torch.nan)
                if found.isfinite():
                    self.rows.append(float(found))


def watch(task: Task, seed: int) -> tuple[list[Seen], float]:
    """Train Jorge as transferred, but for the variances; what was seen of each shape group, and the last loss."""
    usual, seen = CONTENDERS["jorge"], defaultdict[tuple[int, int], Seen](Seen)
    momentum = jorge.step._momentum

    def watched(work: Any, directions: list[Tensor], buffers: Any, *rest: Any) -> list[Tensor]:
        for i, (each, group) in enumerate(zip(directions, work.matrices, strict=True)):
            seen[work.number, i].take(each, linear=is_linear_map(group.part))
        return momentum(work, directions, buffers, *rest)

    plain = replace(usual, options=lambda t, s: {**usual.options(t, s), "adapt_variance": False})
    with patch.object(jorge.step, "_momentum", watched):
        record = train(task, plain, seed, task.steps, task.load(), lambda *_: None)
    return list(seen.values()), float(record["losses"][-1])


def row(seen: Sequence[Seen]) -> list[float]:
    """The numbers of a task, as the module says."""
    falls, varies, agrees, gains, rows = [], [], [], [], []
    for each in seen:
        lengths, ratios, cosines = (torch.stack(x) for x in (each.lengths, each.ratios, each.cosines))
        tenth, third = max(1, len(lengths) // 10), max(1, len(lengths) // 3)
        ends = [lengths[part].mean(0).clamp(min=_TINY) for part in (slice(tenth), slice(-tenth, None))]
        falls += (ends[0] / ends[1]).log10().tolist()
        varies += (ratios.std(0) / torch.log(torch.tensor(10.0))).tolist()
        agrees += cosines.mean(0).tolist()
        ranked = cosines.gather(0, ratios.argsort(0))
        gains += (ranked[-third:].mean(0) - ranked[:third].mean(0)).tolist()
        rows += each.rows
    return [fmean(x) if x else float("nan") for x in (falls, varies, agrees, gains, rows)]


def _work(task: str, size: Any, seed: int) -> list[float]:
    return row(watch(find_task(task, size), seed)[0])


def main(argv: Sequence[str] | None = None) -> None:
    """Train on each task and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="as of jorge compare")
    parser.add_argument("--size", choices=("smoke", "small"), default="small")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print(environment(torch.device("cpu")))
    print("\n| task | falls by | varies by | agrees | long − short | rows |\n|---|---|---|---|---|---|")
    with ProcessPoolExecutor(args.workers, processes(1), prepare_worker, (1,)) as pool:
        jobs = [[pool.submit(_work, task, args.size, seed) for seed in range(args.seeds)] for task in args.tasks]
        for task, mine in zip(args.tasks, jobs, strict=True):
            found = [fmean(values) for values in zip(*(job.result() for job in mine), strict=True)]
            print(f"| `{task.split(':')[-1]}` | {' | '.join(f'{x:.2f}' for x in found)} |", flush=True)


if __name__ == "__main__":
    main()
