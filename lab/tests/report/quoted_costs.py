"""The tables of what things cost: from the committed records of the benchmarks, as the pages quote them."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jorge_lab.cost.gpu import tables
from jorge_lab.cost.gpu.models import TRAININGS
from jorge_lab.cost.harness import heading

ROOT = next(folder for folder in Path(__file__).resolve().parents if (folder / "CHANGELOG.md").exists())
RECORDS = ROOT / "lab" / "records"


@cache
def measured(name: str) -> Any:
    """The figures of a script."""
    return json.loads((RECORDS / f"{name}.json").read_text())


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """As Markdown."""
    return "\n".join(f"| {' | '.join(line)} |" for line in [headings, ["---"] * len(headings), *lines]) + "\n"


def number(value: float | None) -> str:
    """Three significant digits, a dash for none, as the scripts print it."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def step_time() -> str:
    """Of `step_time`."""
    return _step_times("step_time", "resnet50")


def small_layers() -> str:
    """Of `step_time`, at a quarter of the width."""
    return _step_times("small_layers", "resnet50/4")


def _step_times(record: str, model: str) -> str:
    lines = []
    for r in measured(record)["models"][model]["rows"]:
        low, high = map(number, r["ms_quartiles"])
        rest = [r["first_ms"], r["flops"] / 1e9 or None, r["to_gemm"], r["to_sgd"], r["to_muon"]]
        k = "–" if r["interval"] is None else str(r["interval"])
        lines.append([f"`{r['optimizer']}`", k, number(r["ms"]), f"{low} … {high}", *map(number, rest)])
    heads = ["ms a step", "quartiles", "first step, ms", "GFLOP a step", "÷ GEMM time", "÷ SGD", "÷ Muon"]
    return table(["optimizer", "K", *heads], lines)


def iteration() -> str:
    """Of `iteration_overhead`."""
    lines = []
    for r in measured("iteration_overhead")["models"]["resnet18"]["rows"]:
        ms, ratio = (f"{x:.0f}" for x in r["ms_quartiles"]), (f"{x:.3f}" for x in r["to_sgd_quartiles"])
        lines.append([f"`{r['optimizer']}`", f"{r['ms']:.0f}", " … ".join(ms), f"{r['to_sgd']:.3f}", " … ".join(ratio)])
        lines[-1] += [f"{r['mean_to_sgd']:.3f}", str(r["rounds"])]
    heads = ["optimizer", "ms an iteration", "quartiles", "÷ SGD", "quartiles", "mean ÷ SGD", "rounds"]
    return table(heads, lines)


def memory() -> str:
    """Of `memory`."""
    keys = ("state", "held", "peak_refresh", "peak_plain", "peak_first")
    rows = measured("memory")["models"]["resnet50"]["rows"]
    lines = [[f"`{r['optimizer']}`", *(f"{r[key]:.2f}" for key in keys)] for r in rows]
    return table(["optimizer", "state", "held", "peak, refresh", "peak, no refresh", "peak, first step"], lines)


def launches() -> str:
    """Of `launches`."""
    return _launches("launches", ("resnet50", "resnet101"))


def small_launches() -> str:
    """Of `launches`, at a quarter of the width."""
    return _launches("small_launches", ("resnet50/4", "resnet101/4"))


def _launches(record: str, models: tuple[str, str]) -> str:
    lines = []
    for r in measured(record)["rows"]:
        counts = [str(n) for model in models for n in r["models"][model]["operators"]]
        lines.append([f"`{r['optimizer']}`", *counts, *(f"{x:.2f}" for x in r["growth"]), str(r["waits"])])
    kinds = ("refresh", "no refresh")
    heads = [f"{name}, {kind}" for name in (*models, "their ratio") for kind in kinds]
    return table(["operators", *heads, "waits in 100 steps"], lines)


def stagger() -> str:
    """Of `stagger`."""
    lines = []
    for r in measured("stagger")["models"]["resnet50"]:
        times = (f"{1e3 * r[key]:.0f}" for key in ("median", "mean", "p99"))
        lines.append([f"`{r['stagger']}`", *times, f"{r['ratio']:.2f}"])
    return table(["`stagger`", "median, ms", "mean, ms", "p99, ms", "p99 ÷ median"], lines)


def imports() -> str:
    """Of `import_time`."""
    rows = [r for r in measured("import_time")["rows"] if r["import"] != "nothing"]
    return table(["import", "ms over torch"], [[f"`{r['import']}`", f"{r['ms']:.1f}"] for r in rows])


def pruning() -> str:
    """Of `pruning`."""
    lines = []
    for r in measured("pruning")["rows"]:
        worse = [f"`{name}` {loss:.0%}" for name, loss in r["worse"].items()]
        few = ", ".join(worse) or "none"
        ends = [f"{100 * f(r['worse'].values()):.0f}" for f in (min, max)] if worse else []
        said = few if len(worse) < 6 else f"{len(worse)} studies, by {' to '.join(ends)} %"
        lines.append([str(r["complete_first"]), f"{r['never_pruned']:.0%}", f"{r['hours']:.2f}", said])
    heads = ["complete trials before", "of its steps never stopped", "hours of 2 cores", "worse by over 1 %"]
    return table(heads, lines)


def lora() -> str:
    """Of `lora`: loss and bytes of state over AdamW's, by rank."""
    rows = measured("lora")["rows"]
    lines = []
    for name in dict.fromkeys(row["optimizer"] for row in rows):
        line = [f"`{name}`" if "=" in name else name]
        for row in [row for row in rows if row["optimizer"] == name]:
            base = next(r for r in rows if r["rank"] == row["rank"] and r["optimizer"] == "AdamW")
            line.append(f"{row['loss']:.3f}, {row['state_bytes'] / base['state_bytes']:.1f}")
        lines.append(line)
    ranks = dict.fromkeys(row["rank"] for row in rows)
    return table(["loss, state ÷ AdamW's", *(f"rank {rank}" for rank in ranks)], lines)


def health() -> str:
    """Of `health`: the numbers of each run at its half, and what was counted at its end."""
    lines = []
    for task in measured("health")["tasks"].values():
        for run in task["runs"]:
            half, last = run["seen"][len(run["seen"]) // 2], run["seen"][-1]
            title = task["title"] if run is task["runs"][0] else ""
            keys = ("update_to_weight", "cosine", "gradient_residual", "whitening_residual", "staleness")
            counts = (f"{last[key]:.0f}" for key in ("skipped_steps", "without_gradient"))
            lines.append([title, run["run"], number(run["loss"]), *(number(half.get(key)) for key in keys), *counts])
    heads = ["update ÷ weight", "cosine", "gradient", "whitened", "stale", "skipped", "parameters without gradient"]
    return table(["", "run", "loss", *heads], lines)


def gpu() -> str:
    """Of `gpu`."""
    found = measured("gpu")
    return "\n" + heading(found["environment"]) + "\n\n" + tables.report(found) + "\n\n"


def gpu_claim() -> str:
    """The sentence on the GPU at the top of the README."""
    found = measured("gpu")
    cost: dict[str, list[str]] = {"jorge": [], "muon": []}
    for name in TRAININGS:
        for row in found[f"iteration, {name}"]:
            if row["optimizer"] in cost:
                cost[row["optimizer"]].append(f"{row['to_baseline']:.2f}")
    seconds = {row["optimizer"]: f"{row['seconds']:.1f}" for row in found["task"]}
    (jorge, muon), device = cost.values(), found["environment"]["device"]
    said = (
        f"On one {device}, an iteration takes {jorge[0]} times fused SGD's (ResNet-50), {jorge[1]} (ViT-S) and "
        f"{jorge[2]} (GPT-2 small) times fused AdamW's; with Muon {muon[0]}, {muon[1]} and {muon[2]}. A small "
        f"transformer reaches AdamW's best loss after {seconds['jorge']} seconds there, AdamW after "
        f"{seconds['adamw']}, Muon after {seconds['muon']}, in a single run "
        f"([all figures, and what is wrong](docs/notebook/gpu.md))."
    )
    return textwrap.fill(said, 120, break_long_words=False, break_on_hyphens=False) + "\n"
