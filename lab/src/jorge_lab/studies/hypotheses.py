"""What makes training end lower? One change of Jorge's step at a time: `python -m jorge_lab.studies.hypotheses TASK …`.

Trains Jorge as transferred with each change and prints a table a task: the steps to the target of the task's
first-order baseline (taken from the records of a comparison, `--records`), and the smoothed loss at the end, a seed a
number. `--out` keeps the runs; the same command given again goes on, and prints what is there.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import jorge.step
from jorge import grafting, parameters, routing
from jorge.arrange import WorkSet
from jorge.methods import Method
from jorge.options import Options
from jorge.stacking import Blocks, refresh_blocks
from jorge_lab.contenders import CONTENDERS
from jorge_lab.runs.environment import environment
from jorge_lab.runs.records import read, setting
from jorge_lab.runs.run import train
from jorge_lab.runs.store import Record, Store
from jorge_lab.runs.workers import prepare_worker, processes
from jorge_lab.statistics.reaching import first_step_below, smooth, targets
from jorge_lab.tasks.finding import find_task
from jorge_lab.tasks.task import Task

_TINY = 1e-30


Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Hypothesis:
    """A change of the step.

    Args:
        says: what is changed, in a line.
        options: of the optimizer, beside those that are transferred.
        averages_directions: whether directions are averaged in the place of gradients: each is then of the roots of its
            step.
        adapt: what is given the step's length in the place of the direction.
        length: of the steps of a shape group in the place of those that they have, `[count]`, from these and what the
            steps go along.
        decay: the weights' own part of the step in the place of `W ← W − lr·λ·W`, from the weights and the update.
        scheduled_decay: whether the decay follows the schedule of the lr once more, from its highest lr on.
        kernels: whether kernels of several taps count as linear maps.
        keep_norms: whether each matrix keeps the norm that it has at the start.
        staleness: how much more damping a refresh applies for what the last one changed of the preconditioners, of
            their length.
        refreshes_by_average_after: steps after which the average stands for the gradient in refreshes, too.
        skip_below: blocks of whose preconditioners the last refresh changed less than this leave out the next.
    """

    says: str
    options: Mapping[str, Any] = field(default_factory=dict)
    averages_directions: bool = False
    adapt: Change | None = None
    length: Callable[[Tensor, Tensor], Tensor] | None = None
    decay: Callable[[Tensor, Tensor], Tensor] | None = None
    scheduled_decay: bool = False
    kernels: bool = False
    keep_norms: bool = False
    staleness: float = 0.0
    refreshes_by_average_after: float = math.inf
    skip_below: float = 0.0


def _matrix(tensor: Tensor) -> Tensor:
    return tensor.reshape(len(tensor), tensor.shape[1], -1)


def _mean_square(matrix: Tensor) -> Tensor:
    return matrix.square().mean((1, 2), keepdim=True)


def _root_mean_square(size: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda lengths, directions: torch.full_like(lengths, size * directions[0].numel() ** 0.5)


def _times(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda lengths, _: lengths * factor


def _polar(directions: Tensor) -> Tensor:
    """Two Newton–Schulz steps towards singular values of one size: `X ← X(3I − XᵀX)/2`."""
    matrix = _matrix(directions)
    wide = matrix if matrix.shape[1] <= matrix.shape[2] else matrix.mT
    wide = 0.6 * wide / (wide.square().sum((1, 2), keepdim=True) / wide.shape[1]).sqrt().clamp(min=_TINY)
    for _step in range(2):
        wide = 1.5 * wide - 0.5 * (wide @ wide.mT) @ wide
    return (wide if matrix.shape[1] <= matrix.shape[2] else wide.mT).reshape(directions.shape)


def _cautious(weights: Tensor, update: Tensor) -> Tensor:
    """Decay where the update shrinks the weight anyhow (arXiv 2510.12402)."""
    return weights * (weights * update >= 0)


_FROBENIUS = {"graft_norm": "frobenius"}
_LONG = {"graft_memory": None}
_LEVEL = {"adapt_variance": False}
#: By name.
HYPOTHESES: dict[str, Hypothesis] = {
    "as it is": Hypothesis("Jorge as it is"),
    "plain": Hypothesis(
        "none of the three: Frobenius norm, the memory of β2, no variances", _FROBENIUS | _LONG | _LEVEL
    ),
    "no variances": Hypothesis("rows and columns as whitening leaves them", _LEVEL),
    "frobenius": Hypothesis("as long as Adam's step in the Frobenius norm", _FROBENIUS),
    "long": Hypothesis("Adam's length remembers as long as β2 says", _LONG),
    "memory 10": Hypothesis("Adam's length remembers 10 steps at most", {"graft_memory": 10}),
    "memory 50": Hypothesis("Adam's length remembers 50 steps at most", {"graft_memory": 50}),
    "kernels too": Hypothesis("kernels of several taps as if they were linear maps", kernels=True),
    "x1.3": Hypothesis("1.3 times as long", length=_times(1.3)),
    "frobenius, x1.3": Hypothesis("Frobenius norm, 1.3 times as long", _FROBENIUS, length=_times(1.3)),
    "frobenius, x1.8": Hypothesis("Frobenius norm, 1.8 times as long", _FROBENIUS, length=_times(1.8)),
    "constant": Hypothesis("a root mean square of 0.4 at all steps", length=_root_mean_square(0.4)),
    "momentum .95": Hypothesis("a momentum of .95, Adam's too", {"momentum": 0.95}),
    "polar": Hypothesis("two polar steps on the momentum", adapt=_polar),
    "cautious decay": Hypothesis("decay only where the update shrinks the weight", decay=_cautious),
    "scheduled decay": Hypothesis("decay by the square of the schedule", scheduled_decay=True),
    "norms kept": Hypothesis("matrices keep the norm of their start", keep_norms=True),
    "staleness": Hypothesis("damping that grows with what a refresh changes", staleness=100.0),
    "skipped": Hypothesis("refreshes left out where the last one changed less than a tenth", skip_below=0.1),
    "directions averaged": Hypothesis(
        "the gradient is preconditioned, and the directions are averaged; variances see the average",
        averages_directions=True,
    ),
    "refreshes by averages": Hypothesis("refreshes see the average of the gradients", refreshes_by_average_after=0),
    "refreshes by averages later": Hypothesis("so they do after sixty steps", refreshes_by_average_after=60),
    "interval 1": Hypothesis("a refresh at every step", {"interval": 1}),
}


class _Averages:
    """What is averaged, and what refreshes see."""

    def __init__(self, hypothesis: Hypothesis) -> None:
        self._hypothesis, self._begin, self._directions = hypothesis, jorge.step.begin, jorge.step._directions
        self._means: dict[tuple[int, int], Tensor] = {}
        self._steps: Counter[int] = Counter()
        self._grads: list[Tensor] = []

    def begin(
        self, work: WorkSet, tensors: Any, inputs: Any, grads: list[Tensor], kept: Tensor, options: Options, *rest: Any
    ) -> jorge.step.Begun:
        """The gradients, and the average in their place for a refresh."""
        begun = self._begin(work, tensors, inputs, grads, kept, options, *rest)
        self._grads = [grad.clone() for grad in grads[len(work.groups) - len(work.matrices) :]]
        self._steps[id(work)] += 1
        if begun.seen and self._steps[id(work)] > self._hypothesis.refreshes_by_average_after:
            begun.seen = jorge.step._look_ahead(work, tensors, self._grads, options)
        return begun

    def directions(
        self, work: WorkSet, states: Any, cut: list[Tensor], grads: list[Tensor], options: Options, *rest: Any
    ) -> list[Tensor]:
        """Those of the average, or the average of the gradients' own."""
        if not self._hypothesis.averages_directions:
            return self._directions(work, states, cut, grads, options, *rest)
        torch._foreach_copy_(cut, self._grads)
        found = self._directions(work, states, cut, grads, options, *rest)
        aheads, weight = [], 1 - options.momentum
        for i, direction in enumerate(found):
            mean = torch.lerp(self._means.get((id(work), i), torch.zeros_like(direction)), direction, weight)
            self._means[id(work), i] = mean
            aheads.append(torch.lerp(mean, direction, weight) if options.nesterov else mean)
        return aheads


class _Refreshes:
    """Refreshes in whose place others are made, by what the last one changed of each block."""

    def __init__(self, hypothesis: Hypothesis) -> None:
        self._hypothesis, self._refresh = hypothesis, refresh_blocks
        self._changes: dict[tuple[int, int], Tensor] = {}
        self.asked = self.skipped = 0

    def __call__(self, method: Method, some: Sequence[Blocks], options: Options, *rest: Any) -> None:
        """Refresh some blocks, stack by stack."""
        for blocks in some:
            self._one(method, blocks, options, *rest)

    def _one(self, method: Method, blocks: Blocks, options: Options, *rest: Any) -> None:
        state, _, where = blocks
        assert isinstance(where, slice)
        key = (state["refreshes"].data_ptr(), where.start)
        before = {name: tensor[where].clone() for name, tensor in state.items()}
        last = self._changes.get(key, torch.full((len(before["refreshes"]),), torch.inf))
        if self._hypothesis.staleness and last.isfinite().all():
            more = 1 + self._hypothesis.staleness * last.mean().item()
            options = options.replace(damping=options.damping * more)
        self._refresh(method, [blocks], options, *rest)
        change = torch.stack([_relative(state[side][where], before[side]) for side in ("left", "right")]).amax(0)
        resting = last < self._hypothesis.skip_below
        for name, old in before.items():
            now = state[name][where]
            torch.where(resting.view(-1, *(1,) * (now.dim() - 1)), old, now, out=now)
        self._changes[key] = torch.where(resting, torch.inf, change)
        self.asked += len(resting)
        self.skipped += int(resting.sum())


def _relative(new: Tensor, old: Tensor) -> Tensor:
    """How much each block has changed, of its length."""
    change: Tensor = (new - old).flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1)
    return change


@contextmanager
def changed(hypothesis: Hypothesis) -> Iterator[_Refreshes]:
    """Jorge's step is the changed one inside; for one optimizer, whose whole training is inside."""
    refreshes = _Refreshes(hypothesis)
    norms: dict[int, Tensor] = {}
    highest = 0.0
    adapted, move, ratios = jorge.step._adapted, parameters.move, grafting.ratios

    seen: list[Tensor] = []
    averages = _Averages(hypothesis)

    def changed_adapted(*args: Any) -> list[Tensor]:
        directions = adapted(*args)
        if hypothesis.adapt:
            directions = [hypothesis.adapt(direction) for direction in directions]
        seen[:] = directions
        return directions

    def changed_ratios(norms: Tensor, lengths: Tensor) -> Tensor:
        if hypothesis.length:
            parts = zip(torch.split(lengths, [len(each) for each in seen]), seen, strict=True)
            lengths = torch.cat([hypothesis.length(*part) for part in parts])
        return ratios(norms, lengths)

    def changed_move(
        work: Any, params: Any, present: Any, updates: Sequence[Tensor], taken: Tensor, options: Any
    ) -> None:
        nonlocal highest
        highest = max(highest, options.lr)
        if hypothesis.scheduled_decay:
            options = options.replace(weight_decay=options.weight_decay * options.lr / highest)
        matrices = [p for group in params for p in group if p.dim() > 1]
        kept = [norms.setdefault(id(p), p.norm()) for p in matrices]
        if hypothesis.decay:
            for mine, moved in zip(params, updates, strict=True):
                for p, u in zip(mine, moved.unbind(), strict=True):
                    p.sub_(hypothesis.decay(p, u), alpha=options.lr * options.weight_decay)
            options = options.replace(weight_decay=0.0)
        move(work, params, present, updates, taken, options)
        if hypothesis.keep_norms:
            torch._foreach_mul_(matrices, [norm / p.norm() for norm, p in zip(kept, matrices, strict=True)])

    with ExitStack() as stack:
        if hypothesis.kernels:
            stack.enter_context(patch.object(routing, "is_linear_map", lambda _: True))
        stack.enter_context(patch.object(grafting, "ratios", changed_ratios))
        stack.enter_context(patch.object(jorge.step, "_adapted", changed_adapted))
        stack.enter_context(patch.object(jorge.step, "move", changed_move))
        if hypothesis.averages_directions or hypothesis.refreshes_by_average_after < math.inf:
            stack.enter_context(patch.object(jorge.step, "begin", averages.begin))
            stack.enter_context(patch.object(jorge.step, "_directions", averages.directions))
        if hypothesis.staleness or hypothesis.skip_below:
            stack.enter_context(patch.object(jorge.step, "refresh_blocks", refreshes))
        yield refreshes


def run(task: Task, name: str, seed: int) -> Record:
    """Train Jorge with a change, and say how it went.

    Raises:
        ValueError: the task has a recipe for SGD alone; the changes are of Adam's length.
    """
    if task.recipe.transfer != "adamw":
        raise ValueError(f"{task.name} has no recipe for AdamW, whose step length is changed here")
    hypothesis, usual = HYPOTHESES[name], CONTENDERS["jorge"]
    contender = replace(usual, options=lambda t, s: {**usual.options(t, s), **hypothesis.options})
    with changed(hypothesis) as refreshes:
        record = train(task, contender, seed, task.steps, task.load(), lambda *_: None)
    kept = ("task", "size", "seed", "steps", "diverged_at", "losses", "environment", "task_info")
    skipped = {"skipped": refreshes.skipped / refreshes.asked} if refreshes.skipped else {}
    return {"hypothesis": name, **skipped, **{key: record[key] for key in kept}}


def _work(task: str, name: str, seed: int, size: Any) -> Record:
    return run(find_task(task, size), name, seed)


def rows(records: Sequence[Record], goals: Mapping[int, float]) -> list[list[str]]:
    """A line a hypothesis: steps to the target and loss at the end, a seed a number."""
    lines = []
    for name, hypothesis in HYPOTHESES.items():
        mine = sorted((r for r in records if r["hypothesis"] == name), key=lambda r: int(r["seed"]))
        if mine:
            reached = [first_step_below(r, goals[r["seed"]]) if r["seed"] in goals else None for r in mine]
            ends = ["diverged" if r["diverged_at"] else f"{smooth(r['losses'], r['steps'])[-1]:.4g}" for r in mine]
            lines.append([hypothesis.says, ", ".join("–" if s is None else str(s) for s in reached), ", ".join(ends)])
    return lines


def goals_of(records: Sequence[Record], run: Record) -> dict[int, float]:
    """The target of each seed on the task of a run, from the records of a comparison of such runs."""
    mine = [r for r in records if all(r[key] == run[key] for key in ("task", "size", "steps"))]
    return targets([r for r in mine if setting(r) != "default"])


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is not there yet and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", metavar="TASK", help="as of jorge compare")
    parser.add_argument("--hypotheses", nargs="+", choices=list(HYPOTHESES), default=list(HYPOTHESES), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--size", choices=("smoke", "small"), default="small")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--records", type=Path, nargs="*", default=[], help="records of a comparison, for the targets")
    parser.add_argument("--out", type=Path, default=Path("runs/hypotheses"), help="folder of the runs")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    store = Store.open(args.out, "hypotheses.jsonl")
    found = [r for r in store.read() if r["size"] == args.size]
    done = {(r["task"], r["hypothesis"], r["seed"]) for r in found}
    wanted = [(t, h, s) for s in range(args.seeds) for h in args.hypotheses for t in args.tasks]
    with ProcessPoolExecutor(args.workers, processes(1), prepare_worker, (1,)) as pool:
        futures = [pool.submit(_work, *job, args.size) for job in wanted if job not in done]
        for future in as_completed(futures):
            found.append(future.result())
            store.add(found[-1])
    known = read(args.records) if args.records else []
    print(json.dumps(environment(torch.device("cpu"))))
    for task in args.tasks:
        mine = [r for r in found if r["task"] == task]
        print(f"\n{mine[0]['task_info']['title']}\n\n| | steps to the target | loss at the end |\n|---|---|---|")
        for line in rows(mine, goals_of(known, mine[0])):
            print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
