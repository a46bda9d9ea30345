"""Whom to stop, and when, while tuning: `python -m jorge_lab.tuning.pruning`, the committed trials by other rules.

A trial that a rule stops costs its share of its seconds, and what it would have found is lost. Where a trial was
stopped when it was made, no later stop can be told from that one: it costs what it cost. What the sampler would have
drawn after other trials is not known: the draws are those that were made.
"""

from __future__ import annotations

import gzip
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from jorge_lab.cost import harness
from jorge_lab.tuning.search import COMPLETE_FIRST, NEVER_PRUNED, REPORTS, open_storage

#: The committed trials, which a checkout has beside the package.
JOURNAL = Path(__file__).parents[3] / "records" / "tune.journal.gz"
#: Complete trials, and reports of a trial's own, before which none is stopped: Optuna's usual rule from the middle on
#: first, and the present one among the others.
RULES = ((4, 10), (2, 10), (2, 5), (COMPLETE_FIRST, NEVER_PRUNED), (2, 2), (1, 3))
OPTIMIZERS = ["sgd", "adamw", "shampoo", "soap", "muon", "psgd"]
#: A study is worse off where its best loss is higher than that of all its trials by more than this share.
_WORSE = 0.01


@dataclass(frozen=True)
class Replayed:
    """What a study would have cost, in seconds of a core, and its best loss."""

    seconds: float
    best: float


def read(journal: Path) -> dict[str, list[FrozenTrial]]:
    """The finished trials of each study in a journal, in their order."""
    with tempfile.TemporaryDirectory() as folder:
        unpacked = Path(folder) / "tune.journal"
        unpacked.write_bytes(gzip.decompress(journal.read_bytes()))
        storage = open_storage(str(unpacked))
        return {
            name: optuna.load_study(study_name=name, storage=storage).get_trials(
                states=(TrialState.COMPLETE, TrialState.PRUNED)
            )
            for name in optuna.get_all_study_names(storage)
        }


def replay(trials: Sequence[FrozenTrial], complete_first: int, never_pruned: int) -> Replayed:
    """A study again, by Optuna's own pruner; its first trial, the transferred settings, is never stopped."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=complete_first, n_warmup_steps=never_pruned)
    study, taken, best = optuna.create_study(pruner=pruner), 0.0, math.inf
    for trial in trials:
        reports = sorted(trial.intermediate_values)
        again, stopped = study.ask(), False
        for report in reports:
            again.report(trial.intermediate_values[report], report)
            if trial is not trials[0] and again.should_prune():
                stopped = True
                break
        whole = _seconds(trial)
        if stopped:
            taken += whole * report / (reports[-1] if trial.state is TrialState.PRUNED else REPORTS)
        else:
            taken += whole
        if stopped or trial.value is None or trial.state is TrialState.PRUNED:
            study.tell(again, state=TrialState.PRUNED)
        else:
            study.tell(again, trial.value)
            best = min(best, trial.value)
    return Replayed(taken, best)


def _seconds(trial: FrozenTrial) -> float:
    assert trial.duration is not None
    return trial.duration.total_seconds()


def main(argv: Sequence[str] | None = None) -> None:
    """Replay and print a table."""
    parser = harness.parser(__doc__, [], [], OPTIMIZERS)
    parser.add_argument("--cores", type=int, default=2, help="trials side by side (default: 2)")
    parser.add_argument("--journal", type=Path, default=JOURNAL, metavar="FILE", help="default: %(default)s")
    args = parser.parse_args(argv)
    if not args.journal.is_file():
        parser.error(f"there is no {args.journal}: name a gzipped journal of jorge tune")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    found = harness.where(harness.start(args))
    print(harness.heading(found) + "\n")
    studies = [(name, trials) for name, trials in read(args.journal).items() if name.split("/")[-1] in args.optimizers]
    studies = studies[: 2 if args.quick else None]
    whole = {name: replay(trials, len(trials), 0) for name, trials in studies}
    rows = []
    for complete_first, never_pruned in RULES:
        ran = {name: replay(trials, complete_first, never_pruned) for name, trials in studies}
        losses = {name: ran[name].best / whole[name].best - 1 for name in ran if math.isfinite(whole[name].best)}
        rows.append(
            {
                "complete_first": complete_first,
                "never_pruned": never_pruned / REPORTS,
                "hours": sum(r.seconds for r in ran.values()) / 3600 / args.cores,
                "worse": {name: loss for name, loss in losses.items() if loss > _WORSE},
            }
        )
    columns = [
        "complete trials before",
        "of its steps never stopped",
        f"hours of {args.cores} cores",
        "worse by over 1 %",
    ]
    lines = [
        [
            str(row["complete_first"]),
            f"{row['never_pruned']:.0%}",
            f"{row['hours']:.2f}",
            ", ".join(f"`{name}` {loss:.0%}" for name, loss in row["worse"].items()) or "none",
        ]
        for row in rows
    ]
    print(harness.table(columns, lines))
    print(f"\n{len(studies)} studies, {sum(len(trials) for _, trials in studies)} trials.")
    harness.write(args.out, {"environment": found, "studies": len(studies), "rows": rows})


if __name__ == "__main__":
    main()
