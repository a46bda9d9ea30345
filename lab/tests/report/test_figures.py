"""The figures that README and the notebook quote are those of the committed records.

Tables stand between markers and are made here; sentences are made from the records and looked for in the page.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import geometric_mean, median

import pytest

from jorge_lab.contenders import CONTENDERS
from jorge_lab.contenders.tuned import tuned_options
from jorge_lab.cost.gpu.models import TRAININGS
from jorge_lab.report.parts import parts as make_parts
from jorge_lab.statistics.repeats import repeated
from jorge_lab.tasks import TASKS
from lab.tests.report import quoted
from lab.tests.report.held_out_sentences import (
    not_chosen_on,
    not_chosen_on_either,
    since_held_out,
    since_the_second_five,
)
from lab.tests.report.quoted import GUIDE, NOTEBOOK, README, better, held_out, jorge, others, row, suite, whole
from lab.tests.report.quoted_costs import ROOT, measured
from lab.tests.report.verdicts_of import (
    UNITS,
    WORDS,
    ahead_of_all,
    behind_of,
    ends,
    ends_lower,
    fewer,
    first_or_level,
    lowest,
    on,
    quick,
    tasks,
    times,
)

COMPARISON, BENCHMARKS = (NOTEBOOK / f"{name}.md" for name in ("comparison", "benchmarks"))


@pytest.mark.parametrize(("page", "name"), quoted.BLOCKS, ids=lambda x: x.stem if isinstance(x, Path) else x)
def test_a_table_is_made_of_the_records(page: Path, name: str) -> None:
    found = quoted.between(name).search(page.read_text(encoding="utf-8"))
    assert found is not None
    assert found[0] == quoted.BLOCKS[page, name](), "write it again: python -m lab.tests.report.quoted"


def front() -> Iterator[tuple[Path, str]]:
    """What README says: page and sentence, or part of one."""
    assert {row.tested for p in suite() for row in (jorge(p), *others(p))} == {5}
    both = " and ".join(f"in {unit} on {lowest(suite(), unit)} of ten" for unit in UNITS)
    yield README, f"Jorge has the lowest median, ties included, {both}."
    assert behind_of("steps") == {"mnist1d-conv": {"SOAP", "Muon", "PSGD-Kron"}, "autoencoder": {"Shampoo"}}
    assert behind_of("seconds") == {"mnist1d-conv": {"Muon"}, "brain": {"Muon"}}
    alone = [WORDS[len(ahead_of_all(suite(), unit))] for unit in UNITS]
    yield (
        README,
        f"By a paired test it is ahead of all others in steps on {alone[0]} and in seconds on {alone[1]}; ahead of it "
        "are SOAP, Muon and PSGD-Kron in steps on the conv net, Shampoo in steps on the autoencoder, and Muon in "
        "seconds on the conv net and on brain slices.",
    )
    over = ends()
    level, first = (sum(ratio <= most for ratio in over.values()) for most in (1.01, 1.0))
    yield README, f"It ends lowest on {WORDS[first]} of ten, and within 1 % of the lowest on {WORDS[level]}"
    assert lowest(held_out(), "steps") == lowest(held_out(), "seconds")
    yield README, f"the median is the lowest on {lowest(held_out(), 'steps')} of five"
    ratios = [jorge(p).state_bytes / row(p, "adamw").state_bytes for p in suite()]
    state = f"state is {min(ratios):.1f} to {max(ratios):.1f} times AdamW's"
    yield README, state
    yield COMPARISON, state
    level_of = {(n, u): tasks(suite(), u, "level", "ahead", name=n) for n in ("muon", "soap") for u in UNITS}
    said = "By the test Muon is level or ahead in steps on {} of ten and in seconds on {}, SOAP in steps on {}."
    yield README, said.format(level_of["muon", "steps"], level_of["muon", "seconds"], level_of["soap", "steps"])
    yield README, f"Tuned, Muon ends lower on {ends_lower('muon')} and SOAP on {ends_lower('soap')} than Jorge does"
    own = sorted(jorge(p).optimizer_ms or 0 for p in suite())
    yield README, f"Jorge's own step takes {own[0]:.0f} to {own[-1]:.0f} ms on these tasks."
    largest = max(row(p, "adamw").state_bytes / 8e6 for p in (*suite(), *quoted.to_the_end()))
    assert 4 < largest < 5
    yield README, "Nothing above 5 million parameters was trained"
    trained = measured("iteration_overhead")["models"]["resnet18"]["rows"][-1]
    assert trained["optimizer"] == "jorge"
    median, mean = (f"{trained[key]:.2f}" for key in ("to_sgd", "mean_to_sgd"))
    yield README, f"takes {median} times SGD's"
    yield BENCHMARKS, f"takes {median} times SGD's in the median and {mean} in the mean"


def guides() -> Iterator[tuple[Path, str]]:
    """What the guide repeats."""
    lower = f"Tuned, Muon ends lower on {ends_lower('muon')} of ten and SOAP on {ends_lower('soap')} than Jorge does"
    yield GUIDE / "should-i-use-it.md", lower
    units = " and ".join(f"in {unit} on {first_or_level(unit)}" for unit in UNITS)
    yield GUIDE / "faq.md", f"Jorge as transferred is first or level {units} of ten."
    own = [
        100 * (row["to_baseline"] - 1)
        for name in TRAININGS
        for row in measured("gpu")[f"iteration, {name}"]
        if row["optimizer"] == "jorge"
    ]
    yield NOTEBOOK / "gpu.md", f"costs {min(own):.0f} to {max(own):.0f} % more than with fused SGD or AdamW"
    yield GUIDE / "should-i-use-it.md", f"costs [{min(own):.0f} to {max(own):.0f} % more than with fused SGD or AdamW]"


def comparison() -> Iterator[tuple[Path, str]]:
    """What the comparison says."""
    names = {"MNIST-1D, perceptron": "the perceptron", "MNIST-5k, deep autoencoder": "the autoencoder"}
    names |= {"Fashion-MNIST, residual network": "the residual network", "Fashion scenes, Mask R-CNN": "the scenes"}
    names |= {"MNIST-5k, small CNN": "MNIST"}
    names |= {"Python's standard library, character transformer": "Python's sources"}
    names |= {"Fashion-MNIST, vision transformer": "the vision transformer"}
    for unit in UNITS:
        where = [names[each] for each in ahead_of_all(suite(), unit)]
        said = f"the lowest median, ties included, on {lowest(suite(), unit)} of ten. It is first or level on"
        told = f"{', '.join(where[:-1])} and {where[-1]}."
        yield COMPARISON, f"{said} {first_or_level(unit)}, and ahead of all on {WORDS[len(where)]}: {told}"
    conv, brain = on("mnist1d-conv"), on("brain")
    by = [fewer(row(p, "muon", "tuned"), jorge(p), "seconds") for p in (conv, brain)]
    yield COMPARISON, f"Muon takes {by[0]} and {by[1]} fewer."
    over = ends()
    level, first = (sum(ratio <= most for ratio in over.values()) for most in (1.01, 1.0))
    yield COMPARISON, f"it ends lowest on {WORDS[first]} of ten and within 1 % of the lowest on {WORDS[level]}"
    assert {task for task, ratio in over.items() if ratio > 1.01} == {"mnist", "mnist1d-conv"}
    worse = [f"{100 * (over[task] - 1):.0f} %" for task in ("mnist", "mnist1d-conv")]
    yield COMPARISON, f"MNIST ({worse[0]} above SOAP) and the conv net ({worse[1]} above PSGD-Kron)"
    counts = [ends_lower(name) for name in ("soap", "muon", "psgd", "shampoo")]
    yield COMPARISON, "SOAP on {} tasks, Muon on {}, PSGD-Kron on {}, Shampoo on {}".format(*counts)
    quicker = [
        p.section.name
        for p in suite()
        if row(p, "soap", "default").reached == row(p, "soap", "default").tested
        and (row(p, "soap", "default").steps_to_target or 0) < (jorge(p).steps_to_target or 0)
    ]
    assert quicker == ["shakespeare"]
    told_of = row(on("shakespeare"), "soap", "default")
    factor = times(told_of, jorge(on("shakespeare")))
    words = "in fewer than Jorge as transferred, ahead by the test, in"
    told = f"on Shakespeare ({quoted.steps(told_of)}) {words} {factor} times its seconds."
    yield COMPARISON, told
    assert told_of.verdicts["steps"] == "ahead"
    yield from defaults()
    (spread,) = zip(*(repeated(part.section) for part in quoted.suite_with("directions")), strict=True)
    assert {(*r.key, r.times) for r in spread} == {("jorge", "transferred", 3)}
    found = sorted(100 * r.seconds for r in spread)
    amounts = f"{found[0]:.0f} to {found[-1]:.0f} %, within {median(found):.0f} %"
    yield COMPARISON, f"(`--repeat 3`): the three lie within {amounts} in the median of the ten tasks"
    shares = sorted(100 * (jorge(p).optimizer_share or 0) for p in suite())
    said = f"{shares[0]:.0f} to {shares[-2]:.0f} % of a training step, and {shares[-1]:.0f} % on the autoencoder"
    yield COMPARISON, said
    yield COMPARISON, f"takes {fewer(row(conv, 'soap', 'tuned'), jorge(conv), 'steps')} fewer."
    deep = on("autoencoder")
    exact = row(deep, "shampoo", "tuned")
    yield (
        COMPARISON,
        f"takes {fewer(exact, jorge(deep), 'steps')} fewer steps and {times(exact, jorge(deep))} times the seconds.",
    )


def defaults() -> Iterator[tuple[Path, str]]:
    """What the comparison says of the packages' own settings."""
    names = ("jorge", *quoted.OPTIMIZERS)
    own = {p.section.name: {name: row(p, name, "default") for name in names} for p in quoted.suite_with("directions")}
    there = {name: {task for task, rows in own.items() if rows[name] in whole([rows[name]])} for name in names}
    assert not there["sgd"] | there["adamw"] | there["muon"]
    assert there["shampoo"] < there["jorge"]
    fewer_than = {
        name: {t for t in there["jorge"] & there[name] if quick(own[t]["jorge"], own[t][name])} for name in names
    }
    assert fewer_than["shampoo"] == there["shampoo"]
    assert fewer_than["soap"] == {"autoencoder"}
    counts = [WORDS[len(there[name])] for name in ("jorge", "shampoo", "psgd", "soap")]
    yield COMPARISON, f"learning rate of 0.001 does on {counts[0]}, Shampoo with the same on {counts[1]} of these"
    yield COMPARISON, f"and PSGD-Kron on {counts[2]}. SOAP, whose default is 0.003, does on {counts[3]}"


def from_sgd() -> Iterator[tuple[Path, str]]:
    """What the comparison says of settings from SGD's recipe."""
    found = {part.section.name: part for part in quoted.from_sgd_alone()}
    records = [r for part in found.values() for r in part.section.records]
    gone = [(r["task"], r["optimizer"].split(":")[0], r["diverged_at"]) for r in records if r["diverged_at"]]
    lost = Counter((task, name) for task, name, _ in gone)
    assert lost == {
        ("autoencoder", "jorge"): 5,
        ("autoencoder", "shampoo"): 5,
        ("mnist1d-mlp", "shampoo"): 3,
        ("shakespeare", "sgd"): 1,
    }
    last = max(at for task, _, at in gone if task == "autoencoder")
    assert last == 68
    yield COMPARISON, "diverge with every seed before the sixty-ninth step"
    rows = {name: {r.optimizer.split(":")[0]: r for r in part.rows} for name, part in found.items()}
    short = {(n, o): r.tested - r.reached for n, each in rows.items() for o, r in each.items() if r.reached < r.tested}
    assert {(n, o): k for (n, o), k in short.items() if n not in ("autoencoder", "mnist1d-mlp")} == {
        ("mnist1d-conv", "sgd"): 1,
        ("shakespeare", "jorge-binomial"): 1,
        ("python", "jorge-binomial"): 1,
    }
    jorge, sgd = rows["scenes"]["jorge"], rows["scenes"]["sgd"]
    saved = [1 - getattr(jorge, f"{u}_to_target") / getattr(sgd, f"{u}_to_target") for u in UNITS]
    assert saved == pytest.approx([1 / 3, 0], abs=0.03)
    yield COMPARISON, "On the scenes a third of the steps is saved, and no seconds."


def newer() -> Iterator[tuple[Path, str]]:
    """What the comparison says of newer opponents."""
    first: dict[str, list[str]] = {"steps": [], "end": []}
    fewer_steps, slower = {}, []
    for part in quoted.newer():
        rows = {name: row(part, name) for name in (*quoted.NEWER, "soap", "muon", "jorge")}
        first["steps"].append(min(rows, key=lambda name: rows[name].steps_to_target or math.inf))
        first["end"].append(min(rows, key=lambda name: rows[name].final_loss or math.inf))
        mine, twin = rows["jorge"], rows["kl-shampoo"]
        fewer_steps[part.section.name] = (mine.steps_to_target or 0) - (twin.steps_to_target or math.inf)
        slower.append((twin.optimizer_ms or 0) / (mine.optimizer_ms or 1))
    counts = [WORDS[found.count("jorge")] for found in first.values()]
    yield COMPARISON, f"Jorge takes the fewest steps on {counts[0]} of ten and ends lowest on {counts[1]}."
    assert (first["steps"][0], first["end"][0]) == ("kl-soap", "kl-soap")
    assert {name for name, more in fewer_steps.items() if more > 0} == {"shakespeare"}
    yield COMPARISON, f"takes {fewer_steps['shakespeare']:.0f} steps fewer on Shakespeare"
    assert fewer_steps["fashion"] == -math.inf
    yield COMPARISON, f"Its own step takes {min(slower):.0f} to {max(slower):.0f} times as long as Jorge's"


def tuned() -> Iterator[tuple[Path, str]]:
    """What the comparison says of Jorge tuned."""
    usual, same = {}, []
    for part in suite():
        name = part.section.name
        found = tuned_options(TASKS[name]("small"), "jorge")
        before = CONTENDERS["jorge"].options(TASKS[name]("small"), "transferred")
        usual[name] = found["lr"] / before["lr"]
        same += [name] if usual[name] == 1 else []
    assert same == ["mnist", "autoencoder", "mnist1d-conv"]
    factors = sorted(value for name, value in usual.items() if name not in same)
    assert len({round(x, 2) for x in factors[1:6]}) == 1
    told = (
        f"it was {factors[1]:.1f} times the learning rate with a sixth of the decay, on brain slices {factors[-1]:.1f}"
    )
    yield COMPARISON, told
    yield COMPARISON, f"and on the perceptron {factors[0]:.2f} times"
    rows = {p.section.name: row(p, "jorge", "tuned") for p in quoted.suite_with("directions")}
    ahead = {unit: {n: r.verdicts[unit] for n, r in rows.items() if r.verdicts[unit] != "level"} for unit in UNITS}
    assert ahead == {"steps": {"brain": "ahead"}, "seconds": {"vit": "behind"}}
    records = [r for part in quoted.suite_with("directions") for r in part.section.records if r["seed"] < 3]
    ratios = {}
    for part in make_parts(records, {}):
        mine, rest = row(part, "jorge", "tuned"), [r for r in part.rows if r.optimizer != "jorge" and not r.diverged]
        best = min((r for r in rest if r.setting != "default"), key=lambda r: r.final_loss or 0)
        ratios[part.section.name] = (mine.final_loss or 0) / (best.final_loss or 1), best.label
    higher = {name: (f"{100 * (ratio - 1):.0f} %", label) for name, (ratio, label) in ratios.items() if ratio > 1}
    assert {name: label for name, (_, label) in higher.items()} == {"mnist": "SOAP", "mnist1d-conv": "PSGD-Kron"}
    yield COMPARISON, f"it ends lowest on {WORDS[10 - len(higher)]} of ten. On MNIST SOAP ends lower (it is"
    yield COMPARISON, f"{higher['mnist'][0]} above), on the conv net PSGD-Kron ({higher['mnist1d-conv'][0]})"


def what_is_averaged() -> Iterator[tuple[Path, str]]:
    """What the page of changes says of averages of gradients."""
    before, now = ([jorge(part) for part in found] for found in (quoted.suite_with("directions"), suite()))
    pairs = list(zip(before, now, strict=True))
    steps, ends = (
        geometric_mean([getattr(new, name) / getattr(old, name) for old, new in pairs])
        for name in ("steps_to_target", "final_loss")
    )
    said = f"it takes {100 * (1 - steps):.1f} % fewer steps and ends {100 * (1 - ends):.1f} % lower"
    yield NOTEBOOK / "changes.md", f"{said}, in the geometric mean of the ten tasks"
    more = {p.section.name for p, (old, new) in zip(suite(), pairs, strict=True) if quick(old, new)}
    assert more == {"autoencoder", "shakespeare", "mnist", "brain"}


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
    found = {(r["rank"], r["optimizer"]): r for r in measured("lora")["rows"]}
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
    found = {(r["optimizer"], r["interval"]): r for r in measured("step_time")["models"]["resnet50"]["rows"]}
    refresh, plain = (found["jorge", k]["ms"] for k in (1, "never"))
    yield BENCHMARKS, f"0.2 · {refresh:.0f} + 0.8 · {plain:.0f} ≈ {round(0.2 * refresh + 0.8 * plain, -1):.0f} ms"
    muons = found["muon-bfloat16", None]["ms"]
    usual, sgds = (found[name, 10] for name in ("jorge", "jorge-sgd"))
    yield BENCHMARKS, f"{usual['ms'] / muons:.2f} of bfloat16 Muon's"
    yield BENCHMARKS, f"and {usual['to_sgd']:.0f} times SGD's"
    yield BENCHMARKS, f"{sgds['ms'] / muons:.2f} of it and {sgds['to_sgd']:.0f} times."
    factor = found["jorge-1024", 10]["ms"] / found["jorge", 10]["ms"]
    yield BENCHMARKS, f"Blocks of 1024 cost {factor:.1f} times as much"
    assert [usual["to_muon"], sgds["to_muon"]] == pytest.approx([1 / 5, 1 / 7], rel=0.1)
    small = {(r["optimizer"], r["interval"]): r for r in measured("small_layers")["models"]["resnet50/4"]["rows"]}
    muon, exact = small["jorge", 10]["to_muon"], small["jorge", 10]["ms"] / small["jorge-exact", 10]["ms"]
    yield BENCHMARKS, f"takes {muon:.2f} of float32 Muon's time and {exact:.2f} of that with exact roots"
    alike = small["jorge-sgd", 10]["ms"] / small["jorge-exact-sgd", 10]["ms"]
    yield BENCHMARKS, f"with SGD's length {alike:.2f} of that"
    yield BENCHMARKS, f"blocks of 128, too, {small['jorge-128-sgd', 10]['to_muon']:.2f} of Muon's"
    yield BENCHMARKS, f"Its products alone would take {muon / small['jorge', 10]['to_gemm']:.2f} of Muon's"
    refresh, never = (small["jorge", k]["to_gemm"] for k in (1, "never"))
    yield BENCHMARKS, f"takes {refresh:.1f} times what its products take at that rate"
    whole = small["jorge", "never"]["ms"]
    said = f"does not {never:.1f} times: products are {whole / never:.0f} ms of its {whole:.0f}."
    yield BENCHMARKS, said
    rows = [r for r in measured("pruning")["rows"] if (r["complete_first"], r["never_pruned"]) == (2, 0.15)]
    yield COMPARISON, f"by today's rule the same trials come to [{rows[0]['hours']:.1f}]"


@pytest.mark.parametrize(
    "claims",
    [
        front,
        guides,
        comparison,
        from_sgd,
        newer,
        tuned,
        not_chosen_on,
        since_held_out,
        since_the_second_five,
        what_is_averaged,
        not_chosen_on_either,
        to_the_end,
        adapters,
        step_times,
    ],
)
def test_sentences_say_what_the_records_say(claims: Callable[[], Iterator[tuple[Path, str]]]) -> None:
    for page, text in claims():
        assert " ".join(text.split()) in " ".join(page.read_text(encoding="utf-8").split()), page.relative_to(ROOT)


def test_averages_of_weights_are_higher_and_change_no_order() -> None:
    """As the page of the hypotheses says."""
    rows = [line.split(" | ")[2:] for line in quoted.averages().splitlines()[2:]]
    losses = [[float(cell.split(",")[0]) for cell in row] for row in rows]
    assert len(losses) == 12
    assert all(last <= min(averaged) for last, *averaged in losses)
    for task in (losses[0:4], losses[4:8], losses[8:12]):
        orders = [sorted(range(4), key=lambda i: column[i]) for column in zip(*task, strict=True)]
        assert orders[0] == orders[1] == orders[2]


def test_a_median_of_some_seeds_says_so() -> None:
    """AdamW reaches the target on brain slices with three seeds of five."""
    found = better(on("brain"), "adamw")
    assert (found.reached, found.tested) == (3, 5)
    for page in (README, COMPARISON):
        assert re.search(r"519, \d+\.\d \(3 of 5 seeds\)", page.read_text(encoding="utf-8"))
