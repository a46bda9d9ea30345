"""The figures that README and the notebook quote are those of the committed records.

Tables stand between markers and are made here; sentences are made from the records and looked for in the page.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from jorge_lab.report.parts import Part
from jorge_lab.statistics.reaching import Unit
from jorge_lab.statistics.row import Row
from lab.tests.report import quoted
from lab.tests.report.quoted import NOTEBOOK, README, ROOT, better, held_out, jorge, others, row, suite, whole

COMPARISON, HELD_OUT, BENCHMARKS = (NOTEBOOK / f"{name}.md" for name in ("comparison", "held-out", "benchmarks"))
WORDS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
UNITS: tuple[Unit, ...] = ("steps", "seconds")


@pytest.mark.parametrize(("page", "name"), quoted.BLOCKS, ids=lambda x: x.stem if isinstance(x, Path) else x)
def test_a_table_is_made_of_the_records(page: Path, name: str) -> None:
    found = quoted.between(name).search(page.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == quoted.BLOCKS[page, name](), "write it again: python lab/tests/report/quoted.py"


def lowest(parts: Sequence[Part], unit: Unit) -> str:
    """On how many tasks Jorge's median is the lowest as shown, ties included."""
    shown = {"steps": quoted.steps, "seconds": quoted.seconds}[unit]
    return WORDS[sum(all(float(shown(jorge(p))) <= float(shown(r)) for r in whole(others(p))) for p in parts)]


def verdicts(part: Part, unit: Unit, name: str = "") -> set[str | None]:
    """Of the others, or of one of them, against Jorge."""
    return {r.verdicts.get(unit) for r in others(part) if name in ("", r.optimizer)}


def tasks(parts: Sequence[Part], unit: Unit, *wanted: str, name: str = "") -> str:
    """On how many tasks there is such a verdict."""
    return WORDS[sum(bool(verdicts(p, unit, name) & set(wanted)) for p in parts)]


def first_or_level(unit: Unit) -> str:
    """On how many nobody is ahead of Jorge."""
    return WORDS[sum("ahead" not in verdicts(p, unit) for p in suite())]


def ahead_of_all(parts: Sequence[Part], unit: Unit) -> list[str]:
    """Where all others are behind Jorge."""
    return [quoted.called(p) for p in parts if verdicts(p, unit) == {"behind"}]


def ends_lower(name: str) -> str:
    """On how many tasks an opponent ends lower as tuned than Jorge does as transferred."""
    return WORDS[sum((row(p, name, "tuned").final_loss or 0) < (jorge(p).final_loss or 0) for p in suite())]


def on(task: str, parts: Sequence[Part] = ()) -> Part:
    """A task by its name, or by the end of it."""
    return next(p for p in parts or suite() if p.section.name.endswith(task))


def fewer(found: Row, reference: Row, unit: Unit) -> str:
    """By how many percent it takes less."""
    mine, other = (getattr(r, f"{unit}_to_target") for r in (found, reference))
    return f"{100 * (1 - mine / other):.0f} %"


def times(found: Row, reference: Row) -> str:
    """Its seconds over the other's."""
    return f"{(found.seconds_to_target or 0) / (reference.seconds_to_target or 1):.1f}"


def front() -> Iterator[tuple[Path, str]]:
    """What README says: page and sentence, or part of one."""
    both = " and ".join(f"in {unit} on {lowest(suite(), unit)} of ten" for unit in UNITS)
    yield README, f"Jorge has the lowest median, ties included, {both}."
    assert [p.section.name for p in suite() if "ahead" in verdicts(p, "steps")] == ["mnist1d-conv"]
    assert [r.name for r in others(on("mnist1d-conv")) if r.verdicts["steps"] == "ahead"] == ["SOAP (tuned)"]
    assert first_or_level("seconds") == "ten"
    yield README, "SOAP is ahead of it in steps on the conv net, and nobody in seconds"
    assert lowest(held_out(), "steps") == lowest(held_out(), "seconds")
    yield README, f"the median is the lowest on {lowest(held_out(), 'steps')} of five"
    ratios = [jorge(p).state_bytes / row(p, "adamw").state_bytes for p in suite()]
    state = f"state is {min(ratios):.1f} to {max(ratios):.1f} times AdamW's"
    yield README, state
    yield COMPARISON, state
    level = {(n, u): tasks(suite(), u, "level", "ahead", name=n) for n in ("muon", "soap") for u in UNITS}
    assert "ahead" not in verdicts(on("mnist1d-conv"), "steps", "muon")
    counts = [level["muon", "steps"], level["muon", "seconds"], level["soap", "steps"]]
    said = "Muon is level in steps on {} of ten and in seconds on {} of ten, SOAP level or ahead in steps on {} of ten."
    yield README, said.format(*counts)
    yield README, f"Tuned, Muon ends lower on {ends_lower('muon')} and SOAP on {ends_lower('soap')} than Jorge does"
    own = sorted(jorge(p).optimizer_ms or 0 for p in suite())
    yield README, f"Jorge's own step takes {own[0]:.0f} to {own[-1]:.0f} ms on these tasks."
    largest = max(row(p, "adamw").state_bytes / 8e6 for p in (*suite(), *quoted.to_the_end()))
    assert 4 < largest < 5
    yield README, "Nothing above 5 million parameters was trained"
    trained = quoted.measured("iteration_overhead")["models"]["resnet18"]["rows"][-1]
    assert trained["optimizer"] == "jorge"
    median, mean = (f"{trained[key]:.2f}" for key in ("to_sgd", "mean_to_sgd"))
    yield README, f"takes {median} times SGD's"
    yield BENCHMARKS, f"takes {median} times SGD's in the median and {mean} in the mean"


def comparison() -> Iterator[tuple[Path, str]]:
    """What the comparison says."""
    alone = {unit: ahead_of_all(suite(), unit) for unit in UNITS}
    assert alone["steps"] == ["MNIST-1D, perceptron"]
    assert sorted(alone["seconds"]) == ["MNIST-1D, perceptron", "MNIST-5k, deep autoencoder"]
    for unit, where in zip(UNITS, ("the perceptron.", "the perceptron and the autoencoder."), strict=True):
        said = f"the lowest median, ties included, on {lowest(suite(), unit)} of ten. It is first or level on"
        yield COMPARISON, f"{said} {first_or_level(unit)}, and ahead of all on {WORDS[len(alone[unit])]}, {where}"
    conv, brain = on("mnist1d-conv"), on("brain")
    by = [fewer(row(p, "muon", "tuned"), jorge(p), "seconds") for p in (conv, brain)]
    yield COMPARISON, f"Muon's median is {by[0]} and {by[1]} lower."
    counts = [ends_lower(name) for name in ("soap", "muon", "psgd", "shampoo")]
    yield COMPARISON, "SOAP on {} tasks, Muon on {}, PSGD-Kron on {}, Shampoo on {}.".format(*counts)
    for name in ("sgd", "adamw", "muon"):
        assert all(row(p, name, "default").reached < row(p, name, "default").tested for p in suite())
    told = [row(on(name), "soap", "default") for name in ("shakespeare", "vit")]
    factors = [times(r, jorge(on(name))) for r, name in zip(told, ("shakespeare", "vit"), strict=True)]
    amounts = [quoted.steps(r) for r in told]
    said = f"on Shakespeare ({amounts[0]}) and on the vision transformer ({amounts[1]}), level by the test,"
    yield COMPARISON, f"{said} in {factors[0]} and {factors[1]} times Jorge's seconds."
    assert not any(r.setting == "default" for p in suite() for r in p.rows if r.optimizer in ("jorge", "shampoo"))
    shares = sorted(100 * (jorge(p).optimizer_share or 0) for p in suite())
    said = f"{shares[0]:.0f} to {shares[-2]:.0f} % of a training step, and {shares[-1]:.0f} % on the autoencoder"
    yield COMPARISON, said
    yield COMPARISON, f"takes {fewer(row(conv, 'soap', 'tuned'), jorge(conv), 'steps')} fewer."
    muon, tuned = row(brain, "muon", "tuned"), row(brain, "jorge", "tuned")
    yield COMPARISON, f"takes {quoted.steps(muon)} steps against {quoted.steps(jorge(brain))}."
    yield COMPARISON, f"as transferred ({quoted.steps(tuned)} steps, {quoted.seconds(tuned)} seconds)"
    by_task = {p.section.name: row(p, "jorge", "tuned").verdicts["steps"] for p in suite()}
    assert by_task.pop("brain") == "ahead"
    assert by_task.pop("mnist1d-mlp") == "behind"
    assert set(by_task.values()) == {"level"}
    yield COMPARISON, f"it is behind ({quoted.steps(row(on('mnist1d-mlp'), 'jorge', 'tuned'))} steps), and on the other"
    first = [min((r for r in p.rows if r.setting == "tuned"), key=lambda r: r.final_loss or 0).label for p in suite()]
    yield COMPARISON, f"Jorge ends lowest on {WORDS[first.count('Jorge')]} of ten, by the mean over seeds"
    assert (first.count("SOAP"), first.count("PSGD-Kron")) == (2, 1)


def not_chosen_on() -> Iterator[tuple[Path, str]]:
    """What the page of the tasks that were held out says."""
    assert all("ahead" not in verdicts(p, unit) for p in held_out() for unit in UNITS)
    assert [name.split(", ")[-1] for name in ahead_of_all(held_out(), "steps")] == ["character LSTM"]
    both = " and ".join(f"on {lowest(held_out(), unit)} of five in {unit}" for unit in UNITS)
    yield HELD_OUT, f"Its median is the lowest {both}."
    vae, denoising = on("vae", held_out()), on("denoising", held_out())
    found = [fewer(better(p, "shampoo"), jorge(p), "steps") for p in (vae, denoising)]
    yield HELD_OUT, f"takes {found[0]} fewer steps on the variational autoencoder"
    yield HELD_OUT, f"with twice the recipe's {found[1]} fewer steps"
    losses = sorted(row(vae, name, "tuned").final_loss or 0 for name in ("shampoo", "soap", "muon", "psgd"))
    yield HELD_OUT, f"({losses[0]:.0f} to {losses[-1]:.0f} nats against {jorge(vae).final_loss:.0f})"
    sine = on("coordinates", held_out())
    ends = sorted(row(sine, name, "tuned").final_loss or 0 for name in ("shampoo", "soap", "muon", "psgd"))
    yield HELD_OUT, f"({ends[0]:.5f} to {ends[-1]:.5f} against {jorge(sine).final_loss:.5f})"
    twice = [quoted.seconds(row(sine, "adamw", setting)) for setting in ("tuned", "transferred")]
    yield HELD_OUT, f"is {twice[0]} as tuned and {twice[1]} as transferred"


def to_the_end() -> Iterator[tuple[Path, str]]:
    """What the comparison says of the two long trainings."""
    plays, pictures = quoted.to_the_end()
    adamw, *two = ((row(plays, name).final_loss or 0) for name in ("adamw", "jorge", "muon"))
    assert two[0] == pytest.approx(two[1], rel=0.01)
    yield COMPARISON, f"end level on the plays, each {1 - two[0] / adamw:.0%} below AdamW".replace("%", " %")
    rows = [row(pictures, name) for name in quoted.TO_THE_END]
    assert min(rows, key=lambda r: r.final_loss or 0).optimizer == "jorge"
    assert max(rows, key=lambda r: r.metric or 0).optimizer == "muon"
    spread = 100 * (max(r.metric or 0 for r in rows) - min(r.metric or 0 for r in rows))
    yield COMPARISON, f"the four are within {spread:.1f} points"


def adapters() -> Iterator[tuple[Path, str]]:
    """What the benchmarks say of matrices of a few rows."""
    found = {(r["rank"], r["optimizer"]): r for r in quoted.measured("lora")["rows"]}
    ranks = (4, 8, 64)
    for rank in ranks:
        assert min((r for (k, _), r in found.items() if k == rank), key=lambda r: r["loss"])["optimizer"] in (
            "Jorge",
            "Jorge, block_size=32",
        )
    ratios = {
        k: [found[k, "Jorge, max_dim=256"][what] / found[k, "AdamW"][what] for what in ("loss", "state_bytes")]
        for k in ranks
    }
    gains, weights = sorted(1 - r[0] for r in ratios.values()), sorted(r[1] for r in ratios.values())
    yield BENCHMARKS, f"Jorge ends {100 * gains[0]:.0f} to {100 * gains[-1]:.0f} % lower than AdamW"
    yield BENCHMARKS, f"with {weights[0]:.1f} to {weights[-1]:.1f} times its state"
    heavy = found[4, "Jorge"]["state_bytes"]
    yield (
        BENCHMARKS,
        f"{heavy / found[4, 'AdamW']['state_bytes']:.0f} times AdamW's state at rank 4, in all {heavy / 1e6:.0f} MB",
    )


def step_times() -> Iterator[tuple[Path, str]]:
    """What the benchmarks say below their table of step times."""
    found = {(r["optimizer"], r["interval"]): r for r in quoted.measured("step_time")["models"]["resnet50"]["rows"]}
    refresh, plain = (found["jorge", k]["ms"] for k in (1, "never"))
    yield BENCHMARKS, f"0.2 · {refresh:.0f} + 0.8 · {plain:.0f} ≈ {round(0.2 * refresh + 0.8 * plain, -1):.0f} ms"
    yield BENCHMARKS, f"and {found['jorge', 10]['to_sgd']:.0f} times SGD's"
    factor = found["jorge-1024", 10]["ms"] / found["jorge", 10]["ms"]
    yield BENCHMARKS, f"Blocks of 1024 cost {factor:.1f} times as much"
    assert found["jorge", 10]["to_muon"] == pytest.approx(1 / 7, rel=0.1)
    assert found["jorge", 10]["ms"] / found["muon-bfloat16", None]["ms"] == pytest.approx(1 / 2, rel=0.1)
    rows = [r for r in quoted.measured("pruning")["rows"] if (r["complete_first"], r["never_pruned"]) == (2, 0.15)]
    yield COMPARISON, f"by today's rule the same trials come to [{rows[0]['hours']:.1f}]"


@pytest.mark.parametrize("claims", [front, comparison, not_chosen_on, to_the_end, adapters, step_times])
def test_sentences_say_what_the_records_say(claims: Callable[[], Iterator[tuple[Path, str]]]) -> None:
    for page, text in claims():
        assert " ".join(text.split()) in " ".join(page.read_text(encoding="utf-8").split()), page.relative_to(ROOT)


def test_a_median_of_some_seeds_says_so() -> None:
    """AdamW reaches the target on brain slices with two seeds of three."""
    found = better(on("brain"), "adamw")
    assert (found.reached, found.tested) == (2, 3)
    for page in (README, COMPARISON):
        assert re.search(r"519, 35\.5 \(2 of 3 seeds\)", page.read_text(encoding="utf-8"))
