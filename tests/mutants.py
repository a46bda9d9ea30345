"""Faults that the tests have to notice: one line of the source each, and the tests that are asked.

`python -m tests.mutants` runs those tests on a copy of the source with one fault at a time, an hour on one core, and
prints which fault nobody noticed. `python -m tests.mutants skips 3` takes those of a file, or by number.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Mutant:
    """A fault.

    Args:
        file: below `src/jorge`.
        old: a piece of it, that is there once.
        new: what takes its place.
        asked: arguments of pytest: a file of `tests` without its ending, and what its tests are called.
    """

    file: str
    old: str
    new: str
    asked: tuple[str, str]

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path("src/jorge") / self.file

    def words(self) -> list[str]:
        """The arguments of pytest."""
        file, names = self.asked
        return [f"tests/{file}.py", "-k", names]


REFERENCE = ("test_reference", "is_the_reference")
GOLDEN = ("test_golden", "numbers")
ROOTS = "test_roots"

#: The step: what is taken, its length, its momentum.
_STEPS = [
    Mutant("grafting.py", "mask.times(1 - beta1))", "mask.times(beta1))", GOLDEN),
    Mutant("grafting.py", "_KEPT = 0.9", "_KEPT = 0.8", ("test_optimizer", "sudden_length")),
    Mutant("grafting.py", "share.clamp(min=1 / memory)", "share", ("test_optimizer", "adafactors_memory")),
    Mutant(
        "grafting.py",
        "alpha=kept))",
        "alpha=1.0))",
        ("test_optimizer", "sgds_own"),
    ),
    Mutant(
        "grafting.py",
        "for grad in grads]))[vectors:], 1)",
        "for grad in grads]))[vectors:], 0)",
        ("test_together", "looks_ahead"),
    ),
    Mutant(
        "grafting.py",
        "counts = (moves * shortened > 0)",
        "counts = (shortened > 0)",
        ("test_optimizer", "limit_leaves"),
    ),
    Mutant(
        "grafting.py",
        "max(eps, torch.finfo(dtype).tiny ** 0.5)",
        "eps",
        ("test_hard_gradients", "without_eps or so_small"),
    ),
    Mutant(
        "grafting.py",
        "lengths / norms.add_(torch.finfo(lengths.dtype).tiny ** 0.5)",
        "lengths / norms",
        ("test_rules", "underflowed"),
    ),
    Mutant(
        "step.py",
        "flag = (longest - longest).eq(0)",
        "flag = longest.isnan().logical_not()",
        ("test_skips", "counted_and_change"),
    ),
    Mutant("step.py", "flags[device] & flag if", "flag if", ("test_skips", "every_dtype")),
    Mutant(
        "stacking.py",
        "torch.where(mine.view(",
        "torch.where(mine.new_ones(len(mine)).view(",
        (ROOTS, "zero_and_non_finite"),
    ),
    Mutant(
        "stacking.py",
        '[old["refreshes"] for old in olds], usables)',
        '[old["refreshes"] for old in olds], 1)',
        (ROOTS, "zero_and_non_finite"),
    ),
    Mutant(
        "inputs.py",
        "left -= (stop - start) / stack.room",
        "left -= 0",
        ("test_rules", "as_far_as_the_memory"),
    ),
    Mutant(
        "stacking.py",
        "usable = (total - total).eq(0) & (largest > 0)",
        "usable = (total - total).eq(0)",
        (ROOTS, "zero_and_non_finite"),
    ),
    Mutant(
        "step.py",
        "cut = aheads = _look_ahead(work, tensors, grads[vectors:], options)",
        "cut, aheads = grads[vectors:], _look_ahead(work, tensors, grads[vectors:], options)",
        REFERENCE,
    ),
    Mutant("grafting.py", "momentum * momentum if nesterov else momentum", "momentum", REFERENCE),
    Mutant("step.py", "lengths.mul_(tensors.scalars", "lengths.clone().mul_(tensors.scalars", REFERENCE),
    Mutant("step.py", "clear(updates, kept)", "pass", ("test_skips", "counted_and_change")),
    Mutant(
        "parameters.py", "1 - taken * (rate * decay)", "1 - taken * decay", ("test_optimizer", "decay_is_decoupled")
    ),
    Mutant("parameters.py", "1 - taken * (rate * decay)", "1 - (rate * decay)", ("test_skips", "counted_and_change")),
    Mutant("parameters.py", "torch._foreach_neg_(grads)", "pass", ("test_together", "maximize")),
    Mutant("variance.py", "_REMEMBERED = 20", "_REMEMBERED = 200", ("test_variance", "running_shares or levelled")),
    Mutant(
        "variance.py",
        "_foreach_pow_(scales, -0.25)",
        "_foreach_pow_(scales, -0.5)",
        ("test_variance", "levelled_by_half"),
    ),
    Mutant(
        "schatten.py",
        "torch.cat(step)], dim=1).square()",
        "torch.cat(step)], dim=1)",
        ("test_together", "schatten_norm"),
    ),
    Mutant("schatten.py", "finite & (new - new)", "(new - new)", ("test_skips", "counted_and_change")),
]
#: The preconditioners.
_METHODS = [
    Mutant("methods/whitening.py", "(-0.185204, 0.030181), 3.0", "(-0.185204, 0.030181), 6.0", (ROOTS, "polynomials")),
    Mutant(
        "methods/whitening.py",
        "for_left, for_right = noise * rights, noise * lefts",
        "for_left, for_right = noise * lefts, noise * rights",
        (ROOTS, "transposing or narrow_whitening or follows"),
    ),
    Mutant("methods/whitening.py", "min(self.most_weight, max(1.0, self.weight_per_step * gap))", "1.0", GOLDEN),
    Mutant(
        "methods/whitening.py",
        "blend = 1 - (1 - blend) ** weight",
        "blend = blend * weight",
        (ROOTS, "stands_for_several or counts_refreshes"),
    ),
    Mutant(
        "methods/whitening.py",
        "return unit_diagonals([congruent(",
        "return list([congruent(",
        GOLDEN,
    ),
    Mutant(
        "methods/whitening.py",
        "for fourth in fourths]).sqrt()",
        "for fourth in fourths])",
        (ROOTS, "damping_of_the_narrow or dead_rows"),
    ),
    Mutant(
        "methods/congruence.py",
        "return torch.mul(root, beta2**-0.25)",
        "return torch.mul(root, beta2**-0.5)",
        GOLDEN,
    ),
    Mutant(
        "methods/congruence.py",
        "noise = damping * square_sum(grad) / grad.shape[-2]",
        "noise = damping * square_sum(grad)",
        REFERENCE,
    ),
    Mutant("methods/congruence.py", "-0.077425, 0.007224), 6.0", "-0.077425, 0.007224), 9.0", (ROOTS, "polynomials")),
    Mutant("methods/binomial.py", "* (5 / 32)", "* (3 / 32)", (ROOTS, "narrow_binomial")),
    Mutant("methods/binomial.py", "per_block(beta2**-0.25)", "per_block(beta2**-0.5)", GOLDEN),
    Mutant("methods/exact.py", "correction = 1 - beta2 **", "correction = 1 - 0 * beta2 **", REFERENCE),
    Mutant("methods/exact.py", "values.clamp(min=0) + floor", "values.clamp(min=0)", GOLDEN),
    Mutant(
        "methods/method.py",
        "torch.maximum(moment, 1e-12 * moment.mean(-1, keepdim=True))",
        "moment",
        ("test_reference", "dead_rows"),
    ),
    Mutant(
        "methods/products.py",
        "(1 / (refreshes + 1)).clamp(min=1 - beta2)",
        "(1 / (refreshes + 2)).clamp(min=1 - beta2)",
        REFERENCE,
    ),
    Mutant("methods/products.py", "bits + 0xFFF +", "bits +", (ROOTS, "tf32")),
]
#: When, where, and what is cut.
_PLACES = [
    Mutant("schedule.py", "before % gap == gap - 1", "before % gap == 0", ("test_schedule", "gap_grows or default")),
    Mutant(
        "schedule.py",
        "number = warmup * (gap - 1) + before // gap",
        "number = before // gap",
        ("test_schedule", "earlier"),
    ),
    Mutant(
        "blocks.py", "_CLEARLY_SQUARER * elongation(squarest)", "elongation(squarest)", ("test_blocks", "a_rule_begins")
    ),
    Mutant("blocks.py", "fewest + fewest // 4 + 1", "fewest + fewest // 4", ("test_blocks", "a_rule_begins")),
    Mutant("blocks.py", '"diagonal" if d > max_dim', '"diagonal" if d >= max_dim', ("test_blocks", "a_rule_begins")),
    Mutant("routing.py", "return math.prod(shape[2:]) == 1", "return True", ("test_variance", "linear_maps")),
    Mutant("groups.py", '"weight_decay"] = 0.0', '"weight_decay"] = 1e-9', ("test_groups", "modules_say")),
    Mutant(
        "groups.py",
        "matrix_shape(tuple(p.shape)) is None or _is_norm",
        "_is_norm",
        ("test_groups", "any_shape_do_not_decay"),
    ),
    Mutant("transfer.py", "decay / (1 - momentum)", "decay", ("test_transfer", "papers_rule")),
    Mutant(
        "transfer.py",
        "min(2, 3 * step // self.total_steps)",
        "(3 * step // self.total_steps)",
        ("test_rules", "schedules_end"),
    ),
    Mutant(
        "options.py",
        '"momentum": self.betas[0] if adam else 0.9',
        '"momentum": 0.9',
        ("test_options", "cycles_betas or follows_it"),
    ),
]
#: The state: what is kept, saved, loaded, refused.
_STATE = [
    Mutant("skips.py", "counts[1:].mul_(skipped)", "pass", ("test_skips", "good_step")),
    Mutant("skips.py", "if most < min(given):", "if most <= min(given):", ("test_skips", "too_many")),
    Mutant("skips.py", "            counts[1:].zero_()", "            counts.zero_()", ("test_skips", "after_a_load")),
    Mutant(
        "store.py",
        "if pointer is not None and view.data_ptr() != pointer:",
        "if False:",
        ("test_store", "keeps_the_values"),
    ),
    Mutant("store.py", "type(step) is not int or step < 0", "type(step) is not int", ("test_store", "cannot_be_used")),
    Mutant("store.py", "self._homes.pop(p, None)  # what", "pass  # what", ("test_store", "another_layout")),
    Mutant(
        "store.py",
        "held.update((name, value) for name, value in entry.items() if name not in views)",
        "pass",
        ("test_store", "rollback or takes_the_place"),
    ),
    Mutant("saving.py", 'group["lr"] = tensor.fill_(value)', "tensor.fill_(value)", ("test_state", "learning_rate")),
    Mutant(
        "saving.py",
        "return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in entry.items()}",
        "return dict(entry)",
        ("test_state", "owns_its_memory"),
    ),
    Mutant("saving.py", "self._skips.begin_anew()", "pass", ("test_skips", "after_a_load")),
    Mutant(
        "checkpoints.py",
        "len(flat) == len(own_flat) == len(set(flat))",
        "len(flat) == len(own_flat)",
        ("test_checkpoints", "two_parameters_share"),
    ),
    Mutant(
        "checkpoints.py",
        "(sources[frozenset(each)] if whole else group)",
        "group",
        ("test_checkpoints", "over_all_groups"),
    ),
    Mutant("checkpoints.py", 'return "not finite"', "return None", ("test_checkpoints", "one_error")),
    Mutant(
        "checkpoints.py",
        "is_negative = key.partition",
        "is_negative = not key.partition",
        ("test_checkpoints", "one_error"),
    ),
    Mutant(
        "checks.py",
        "_NEAR, _NEAR_SHORT, _SHORT = 0.85",
        "_NEAR, _NEAR_SHORT, _SHORT = 0.6",
        ("test_errors", "frameworks or near_misses"),
    ),
    Mutant("validation.py", 'had_state and "step" in entry', "False", ("test_store", "vector_is_missed")),
    Mutant(
        "rehearsal.py",
        'whole["memory"].append(scheduled.gap / shares.mean(0))',
        'whole["memory"].append(1 / shares.mean(0))',
        ("test_diagnostics", "in_steps"),
    ),
    Mutant("spectrum.py", "_SQUARINGS = 14", "_SQUARINGS = 3", ("test_diagnostics", "extreme_eigenvalues")),
    Mutant("dryrun.py", "random.setstate(python)", "pass", ("test_checkup", "random_numbers")),
    Mutant("findings.py", "_LONG = 0.3", "_LONG = 300.0", ("test_checkup", "sick or options_that")),
]
MUTANTS = [*_STEPS, *_METHODS, *_PLACES, *_STATE]


def survives(mutant: Mutant) -> str | None:
    """What was said to a fault that nobody noticed, or that is none any more; `None` where it was noticed."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "src", Path(folder) / "src", ignore=shutil.ignore_patterns("__pycache__"))
        path = Path(folder) / mutant.path
        text = path.read_text(encoding="utf-8")
        if mutant.old not in text:
            return f"there is no {mutant.old!r} any more"
        path.write_text(text.replace(mutant.old, mutant.new), encoding="utf-8")
        paths = [str(Path(folder) / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *mutant.words()]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return None if done.returncode == 1 else (done.stdout + done.stderr)[-400:]


def chosen(words: list[str]) -> Iterator[tuple[int, Mutant]]:
    """Those whose number, or a part of whose file, is among some words; all where there are none."""
    for number, mutant in enumerate(MUTANTS):
        if not words or any(word == str(number) or (not word.isdecimal() and word in mutant.file) for word in words):
            yield number, mutant


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("which", nargs="*", help="numbers, or parts of files' names; all by default")
    survivors = 0
    for number, mutant in chosen(parser.parse_args().which):
        said = survives(mutant)
        survivors += said is not None
        print(f"{number:2} {'SURVIVES' if said else 'noticed '} {mutant.file}: {mutant.new.strip()}", flush=True)
        if said:
            print(said)
    print(f"{survivors} survived")
    return min(survivors, 1)


if __name__ == "__main__":
    sys.exit(main())
