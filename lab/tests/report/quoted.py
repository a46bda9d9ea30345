"""The tables that README and the notebook quote from the committed records.

    python -m lab.tests.report.quoted

writes them between their markers, `<!-- name:begin -->` and `<!-- name:end -->`.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from statistics import median

from jorge_lab.report.parts import Part, parts
from jorge_lab.runs.records import read, repetition, setting, task_info
from jorge_lab.statistics.reaching import smooth
from jorge_lab.statistics.row import Row
from lab.tests.report import quoted_costs as costs
from lab.tests.report.quoted_costs import RECORDS, ROOT, number, table

README, NOTEBOOK, GUIDE = ROOT / "README.md", ROOT / "docs" / "notebook", ROOT / "docs" / "guide"

#: As the tables have them.
OPTIMIZERS = ("sgd", "adamw", "shampoo", "soap", "muon", "psgd")


@cache
def suite() -> tuple[Part, ...]:
    """The ten tasks."""
    return tuple(parts(read([RECORDS / "suite.jsonl.gz"]), {}))


@cache
def held_out() -> tuple[Part, ...]:
    """The five tasks on which nothing was chosen."""
    return tuple(parts(read([RECORDS / "held_out.jsonl.gz"]), {}))


@cache
def held_out_today() -> tuple[Part, ...]:
    """Those five with Jorge's defaults of today; its seconds are of another machine than the others'."""
    others = [r for r in read([RECORDS / "held_out.jsonl.gz"]) if r["optimizer"] != "jorge"]
    mine = [r | {"task": then(r["task"])} for r in read([RECORDS / "held_out_today.jsonl.gz"])]
    return tuple(parts([*others, *mine], {}))


def then(task: str) -> str:
    """The name of a held-out task in the records of the day when it was one."""
    return task.replace("jorge_lab.tasks.held_out:", "benchmarks.held_out:")


@cache
def held_out_second() -> tuple[Part, ...]:
    """Five more of those, run when the defaults were settled."""
    return tuple(parts(read([RECORDS / "held_out_second.jsonl.gz"]), {}))


@cache
def held_out_second_today() -> tuple[Part, ...]:
    """Those five with Jorge's step of today."""
    others = [r for r in read([RECORDS / "held_out_second.jsonl.gz"]) if r["optimizer"] != "jorge"]
    return tuple(parts([*others, *read([RECORDS / "held_out_second_today.jsonl.gz"])], {}))


@cache
def from_sgd_alone() -> tuple[Part, ...]:
    """The ten tasks with settings from SGD's recipe, and SGD's own best loss for a target."""
    return tuple(parts(read([RECORDS / "from_sgd.jsonl.gz"]), {}))


#: As transferred, with the first seed.
NEWER = ("kl-shampoo", "kl-soap", "psgd-pro", "normuon")


@cache
def newer() -> tuple[Part, ...]:
    """The ten tasks with newer opponents beside the others and Jorge, all as transferred, the first seed."""
    found = read([RECORDS / "suite.jsonl.gz", RECORDS / "newer.jsonl.gz"])
    first = [r for r in found if r["seed"] == 0 and not repetition(r)]
    # The target is the suite's: the first-order baseline's best, as transferred or as tuned.
    return tuple(parts([r for r in first if setting(r) == "transferred" or r["optimizer"] in ("sgd", "adamw")], {}))


@cache
def to_the_end() -> tuple[Part, ...]:
    """Two tasks at size full, a run each."""
    return tuple(parts(read([RECORDS / "full.jsonl.gz"]), {}))


#: Other steps of Jorge's, as transferred on the ten tasks, by the record that has their runs.
OTHER_STEPS = {"directions averaged": "directions", "gradients averaged, levelled whole": "levelled"}


@cache
def suite_with(record: str) -> tuple[Part, ...]:
    """The ten tasks with other runs of Jorge in the place of its runs as transferred."""
    rest = [r for r in read([RECORDS / "suite.jsonl.gz"]) if r["optimizer"] != "jorge"]
    return tuple(parts([*rest, *read([RECORDS / f"{record}.jsonl.gz"])], {}))


def called(part: Part) -> str:
    """The task as tables name it."""
    return str(task_info(part.section.records[-1])["title"])


def row(part: Part, optimizer: str, setting: str = "transferred") -> Row:
    """A row of a task."""
    return next(r for r in part.rows if r.key == (optimizer, setting))


def jorge(part: Part) -> Row:
    """Jorge as transferred, which is not tuned."""
    return row(part, "jorge")


def others(part: Part) -> list[Row]:
    """The others as transferred and as tuned, of each what was run with the most seeds.

    Their packages' defaults are in the full tables.
    """
    found = [r for r in part.rows if r.optimizer != "jorge" and r.setting != "default"]
    most = {r.optimizer: max(x.tested for x in found if x.optimizer == r.optimizer) for r in found}
    return [r for r in found if r.tested == most[r.optimizer]]


def whole(rows: Sequence[Row]) -> list[Row]:
    """Those that reach the target with every seed."""
    return [r for r in rows if r.tested and r.reached == r.tested]


def better(part: Part, optimizer: str) -> Row:
    """As transferred or as tuned: what reaches the target with more seeds, then in fewer steps, then in less time."""
    rows = [r for r in others(part) if r.optimizer == optimizer]
    most = float("inf")
    return min(rows, key=lambda r: (-r.reached, r.steps_to_target or most, r.seconds_to_target or most))


def steps(found: Row) -> str:
    """The median as tables show it."""
    return f"{found.steps_to_target:.0f}"


def seconds(found: Row) -> str:
    """The median as tables show it."""
    return f"{found.seconds_to_target:.1f}"


def _bold(text: str, best: bool) -> str:
    return f"**{text}**" if best else text


def _amounts(found: Row, least: Sequence[str] = ()) -> str:
    """Steps and seconds; a dash where the median is infinite, and the seeds where not all get there."""
    if found.steps_to_target is None:
        return "–"
    texts = steps(found), seconds(found)
    every = found.reached == found.tested
    said = ", ".join(_bold(t, every and t == low) for t, low in zip(texts, least, strict=True)) if least else texts
    shown = said if isinstance(said, str) else ", ".join(said)
    return shown if every else f"{shown} ({found.reached} of {found.tested} seeds)"


def results() -> str:
    """README's: AdamW, the best of the others, and Jorge."""
    lines = []
    for part in suite():
        mine, rest = jorge(part), whole(others(part))
        quick = min(rest, key=lambda r: r.steps_to_target or 0)
        fast = min(rest, key=lambda r: r.seconds_to_target or 0)
        fewest, least = (min(f(mine), f(r), key=float) for f, r in ((steps, quick), (seconds, fast)))
        shared = [r.label for r in rest if steps(r) == steps(quick)]
        best = f"{_bold(steps(quick), steps(quick) == fewest)} {' and '.join(dict.fromkeys(shared))}, "
        best += f"{_bold(seconds(fast), seconds(fast) == least)} {fast.label}"
        lines.append([called(part), _amounts(better(part, "adamw")), best, _amounts(mine, (fewest, least))])
    return table(["steps, seconds to the target", "AdamW", "fewest steps, least seconds of six others", "Jorge"], lines)


def _every(found: Sequence[Part]) -> str:
    lines = []
    for part in found:
        rows = [*(better(part, name) for name in OPTIMIZERS), jorge(part)]
        least = [min((f(r) for r in whole(rows)), key=float) for f in (steps, seconds)]
        lines.append([called(part), *(_amounts(r, least) for r in rows)])
    labels = [next(r.label for r in found[0].rows if r.optimizer == name) for name in (*OPTIMIZERS, "jorge")]
    return table(["steps, seconds to the target", *labels], lines)


def all_results() -> str:
    """The comparison's: each optimizer as transferred or tuned, whichever is better."""
    return _every(suite())


#: With settings from SGD's recipe, as tables have them.
FROM_SGD = {
    "jorge-binomial:grafting=sgd": "the paper's series",
    "shampoo:grafting=sgd": "Shampoo",
    "jorge:grafting=sgd": "Jorge",
}


def from_sgd() -> str:
    """SGD, and three with settings from its recipe: steps and seconds to SGD's best loss."""
    lines = []
    for part in from_sgd_alone():
        rows = [row(part, name) for name in ("sgd", *FROM_SGD)]
        least = [min((f(r) for r in whole(rows)), key=float) for f in (steps, seconds)]
        lines.append([called(part), *(_amounts(r, least) for r in rows)])
    return table(["steps, seconds to SGD's best loss", "SGD", *FROM_SGD.values()], lines)


def _share_of_sgd(name: str, unit: str) -> str:
    """Its median share of SGD's steps or seconds over the tasks; where it does not get there it is infinite."""
    shares = []
    for part in from_sgd_alone():
        mine, base = (getattr(row(part, who), f"{unit}_to_target") for who in (name, "sgd"))
        shares.append(math.inf if mine is None else mine / base)
    return f"{median(shares):.2f}"


def claim() -> str:
    """The paper's claim, as it was found, in a sentence."""
    own, theirs, series = (
        [_share_of_sgd(name, unit) for unit in ("steps", "seconds")]
        for name in ("jorge:grafting=sgd", "shampoo:grafting=sgd", "jorge-binomial:grafting=sgd")
    )
    failed = [
        called(p)
        for p in from_sgd_alone()
        if row(p, "jorge:grafting=sgd").reached < row(p, "jorge:grafting=sgd").tested
    ]
    count = {1: "one", 2: "two", 3: "three"}[len(failed)]
    said = (
        f"With settings from SGD's recipe alone, as in the paper, Jorge reaches SGD's best loss in {own[0]} of SGD's "
        f"steps and {own[1]} of its seconds, in the median over ten tasks; Shampoo in {theirs[0]} and {theirs[1]}, "
        f"the paper's own series in {series[0]} and {series[1]} "
        f"([each task](docs/notebook/comparison.md#from-sgds-recipe)). It does not get there with every seed on "
        f"{count} of ten: {'; '.join(failed)}."
    )
    return textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False) + "\n"


def all_held_out() -> str:
    """The same on the tasks that were held out."""
    return _every(held_out())


def since_held_out() -> str:
    """Jorge on the first five then and today, and where the lowest of the others ends."""
    return _since(held_out(), held_out_today(), "Jorge of 2026-11-26")


def since_held_out_second() -> str:
    """Jorge on the second five when they were first run, and today."""
    return _since(held_out_second(), held_out_second_today(), "Jorge when first run")


def _since(first: Sequence[Part], today: Sequence[Part], called_then: str) -> str:
    lines = []
    for before, now in zip(first, today, strict=True):
        low = {name: lowest_end(before, name) for name in OPTIMIZERS}
        best = min(low, key=lambda name: low[name])
        mine = [
            f"{'–' if jorge(part).steps_to_target is None else steps(jorge(part))}, {number(jorge(part).final_loss)}"
            for part in (before, now)
        ]
        lines.append([called(before), *mine, f"{number(low[best])} ({row(before, best, 'tuned').label})"])
    return table(["steps, final loss", called_then, "Jorge of 2026-11-28", "lowest of the others, at the end"], lines)


def all_held_out_second() -> str:
    """And on five more of those."""
    return _every(held_out_second())


def lowest_end(part: Part, optimizer: str) -> float:
    """The mean final loss of an optimizer, as transferred or as tuned, whichever is lower; Jorge is not tuned."""
    rows = [jorge(part)] if optimizer == "jorge" else [r for r in others(part) if r.optimizer == optimizer]
    return min((r.final_loss or math.inf for r in rows if not r.diverged), default=math.inf)


def ends_of_held_out_second() -> str:
    """Where each ends on the second five."""
    lines = []
    for part in held_out_second():
        found = [lowest_end(part, name) for name in (*OPTIMIZERS, "jorge")]
        lines.append(
            [
                called(part),
                *(_bold(number(each) if each < math.inf else "diverged", each == min(found)) for each in found),
            ]
        )
    labels = [next(r.label for r in suite()[0].rows if r.optimizer == name) for name in (*OPTIMIZERS, "jorge")]
    return table(["final loss", *labels], lines)


#: Trained to the end, as the table has them.
TO_THE_END = ("sgd", "adamw", "muon", "jorge")


def full() -> str:
    """Where the two long trainings end, and the step at which each passes the baseline's best loss."""
    lines = []
    for part in to_the_end():
        for unit, said in (("loss", "final loss"), ("steps", "steps to the baseline's best"), ("metric", "")):
            found = [row(part, name) for name in TO_THE_END]
            if unit == "loss":
                values = [f"{r.final_loss:.3g}" for r in found]
            elif unit == "steps":
                values = ["–" if r.steps_to_target is None else steps(r) for r in found]
            else:
                said, values = found[0].metric_name, [f"{r.metric:.4g}" for r in found]
            lines.append([called(part) if unit == "loss" else "", said, *values])
    return table(["", "", *(row(to_the_end()[0], name).label for name in TO_THE_END)], lines)


def newer_opponents() -> str:
    """Steps to the target and final losses of newer opponents, SOAP, Muon and Jorge, as transferred."""
    names = (*NEWER, "soap", "muon", "jorge")
    lines = []
    for part in newer():
        rows = [row(part, name) for name in names]
        low = min(r.steps_to_target for r in rows if r.steps_to_target is not None)
        end = min(r.final_loss for r in rows if r.final_loss is not None)
        lines.append([called(part), *(_reached(r, low, end) for r in rows)])
    return table(["steps to the target, final loss", *(row(newer()[0], name).label for name in names)], lines)


def _reached(found: Row, low: float, end: float) -> str:
    reached = "–" if found.steps_to_target is None else _bold(steps(found), found.steps_to_target == low)
    last = "diverged" if found.final_loss is None else _bold(number(found.final_loss), found.final_loss == end)
    return f"{reached}, {last}"


def averaged() -> str:
    """What Jorge's momentum averages, and how far rows and columns are levelled: steps and final loss."""
    lines = []
    for together in zip(suite(), *(suite_with(record) for record in OTHER_STEPS.values()), strict=True):
        rows = [jorge(part) for part in together]
        low = min(r.steps_to_target or math.inf for r in rows)
        end = min(r.final_loss or math.inf for r in rows)
        lines.append([called(together[0]), *(_reached(r, low, end) for r in rows)])
    return table(["steps, final loss", "gradients averaged", *OTHER_STEPS], lines)


def averages() -> str:
    """Final losses, and what is validated, of the last weights and of averages of them; the first seed."""
    found = {(r["task"], r["optimizer"]): r for r in read([RECORDS / "averages.jsonl.gz"])}
    lines = []
    for task in dict.fromkeys(task for task, _ in found):
        for name in ("adamw", "soap", "muon", "jorge"):
            tail, ema = (found[task, f"{name}:{ending}"] for ending in ("tail=0.2", "ema=0.99"))
            last = {"loss": smooth(tail["losses"], tail["steps"])[-1], "metric": tail["evaluations"][-1][1]}
            ends = [f"{each['loss']:.3g}, {each['metric']:.3f}" for each in (last, tail["averaged"], ema["averaged"])]
            title = f"{task_info(tail)['title']}: {task_info(tail)['metric'][0]}" if name == "adamw" else ""
            lines.append([title, tail["label"].split(",")[0], *ends])
    return table(["final loss, then", "", "last weights", "mean of the last fifth", "`ema=0.99`"], lines)


def price() -> str:
    """What a step and the state of Jorge's cost on the ten tasks, beside AdamW."""
    lines = []
    for part in suite():
        mine, base = jorge(part), row(part, "adamw")
        lines.append(
            [
                called(part),
                f"{mine.state_bytes / base.state_bytes:.2f}",
                f"{mine.optimizer_ms:.1f}",
                f"{base.optimizer_ms:.1f}",
                f"{mine.model_ms:.1f}",
                f"{mine.optimizer_share:.0%}",
            ]
        )
    heads = ["", "state ÷ AdamW's", "Jorge's step, ms", "AdamW's step, ms", "the model's, ms", "Jorge's share of both"]
    return table(heads, lines)


def worth() -> str:
    """What Jorge saves beside AdamW, the better of its two, and what it costs, on the ten tasks."""
    lines = []
    for part in suite():
        mine, base = jorge(part), better(part, "adamw")
        saved = [
            f"{getattr(mine, f'{unit}_to_target') / getattr(base, f'{unit}_to_target'):.2f}"
            for unit in ("steps", "seconds")
        ]
        cost = [f"{mine.optimizer_share:.0%}", f"{mine.state_bytes / row(part, 'adamw').state_bytes:.1f}"]
        lines.append([called(part), *saved, *cost])
    heads = ["steps ÷ AdamW's", "seconds ÷ AdamW's", "Jorge's share of a training step", "state ÷ AdamW's"]
    return table(["", *heads], lines)


#: Page and marker → what stands between the markers.
BLOCKS: dict[tuple[Path, str], Callable[[], str]] = {
    (README, "results"): results,
    (README, "claim"): claim,
    (README, "gpu"): costs.gpu_claim,
    (README, "full"): full,
    (GUIDE / "diagnostics.md", "health"): costs.health,
    (GUIDE / "should-i-use-it.md", "worth"): worth,
    (NOTEBOOK / "benchmarks.md", "lora"): costs.lora,
    (NOTEBOOK / "gpu.md", "gpu"): costs.gpu,
    (NOTEBOOK / "comparison.md", "from-sgd"): from_sgd,
    (NOTEBOOK / "comparison.md", "results"): all_results,
    (NOTEBOOK / "comparison.md", "full"): full,
    (NOTEBOOK / "comparison.md", "newer"): newer_opponents,
    (NOTEBOOK / "comparison.md", "price"): price,
    (NOTEBOOK / "hypotheses.md", "averages"): averages,
    (NOTEBOOK / "changes.md", "averaged"): averaged,
    (NOTEBOOK / "held-out.md", "results"): all_held_out,
    (NOTEBOOK / "held-out.md", "since"): since_held_out,
    (NOTEBOOK / "held-out.md", "second"): all_held_out_second,
    (NOTEBOOK / "held-out.md", "second-ends"): ends_of_held_out_second,
    (NOTEBOOK / "held-out.md", "second-since"): since_held_out_second,
    (NOTEBOOK / "benchmarks.md", "step-time"): costs.step_time,
    (NOTEBOOK / "benchmarks.md", "iteration"): costs.iteration,
    (NOTEBOOK / "benchmarks.md", "memory"): costs.memory,
    (NOTEBOOK / "benchmarks.md", "launches"): costs.launches,
    (NOTEBOOK / "benchmarks.md", "small-layers"): costs.small_layers,
    (NOTEBOOK / "benchmarks.md", "small-launches"): costs.small_launches,
    (NOTEBOOK / "benchmarks.md", "stagger"): costs.stagger,
    (NOTEBOOK / "benchmarks.md", "import"): costs.imports,
    (NOTEBOOK / "benchmarks.md", "pruning"): costs.pruning,
}


def between(name: str) -> re.Pattern[str]:
    """What stands between the markers."""
    return re.compile(rf"(?<=<!-- {name}:begin -->\n).*?(?=<!-- {name}:end -->)", re.DOTALL)


def write() -> None:
    """Write every block into its page."""
    for (page, name), make in BLOCKS.items():
        first, last = between(name).split(page.read_text(encoding="utf-8"))
        page.write_text(first + make() + last, encoding="utf-8")


if __name__ == "__main__":
    write()
