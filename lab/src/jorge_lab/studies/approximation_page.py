"""The page of the ablation `error`: tables of what was measured over training, and a picture a task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from matplotlib.figure import Figure

from jorge_lab.report.figures import dashes, decorate, legend, on_white, svg
from jorge_lab.report.styles import COLOURS, DASHES, Style
from jorge_lab.runs.records import picture_file
from jorge_lab.runs.store import Record
from jorge_lab.studies.ablation_page import opening
from jorge_lab.studies.approximation import OPTIMIZERS, POINTS, SINGULAR

QUESTION = (
    "How near are the roots to the exact ones during training, how many refreshes do they remember, how symmetric are "
    "they, and how white are the gradients behind them?"
)

#: What each column of the tables holds: measure, heading, format.
_DISTANCES = (
    ("own_error", "error to its own exact root", ".2g"),
    ("own_cosine", "cosine to it", ".4f"),
    ("direction", "cosine of L G R", ".4f"),
    ("rounding", "error to itself in float64", ".2g"),
    ("shampoo_error", "error to Shampoo's root", ".2g"),
    ("shampoo_cosine", "cosine to it", ".4f"),
    ("asymmetry", "asymmetry", ".2g"),
)
_REST = (
    ("memory", "memory, refreshes", ".1f"),
    ("cut", "refreshes cut short", ".0%"),
    ("condition", "condition of L G R", ".1e"),
    ("raw_condition", "condition of G", ".1e"),
    ("whiteness", "whiteness of L G R", ".2f"),
    ("raw_whiteness", "whiteness of G", ".2f"),
)
#: The panels of a picture: measure, the same of the raw gradients or "", label, scale.
_PANELS = (
    ("own_error", "", "error to its own exact root", "log"),
    ("shampoo_error", "", "error to Shampoo's root", "linear"),
    ("asymmetry", "", "asymmetry", "linear"),
    ("memory", "", "memory, refreshes", "log"),
    ("cut", "", "refreshes cut short so far", "linear"),
    ("whiteness", "raw_whiteness", "whiteness (dotted: of the raw gradients)", "linear"),
)
_EXPLAINED = f"""\
Each method trains by itself and the largest block of each of up to four parameters is followed. A cell has the values
after a twentieth of the steps, in the middle and at the end: medians over blocks, sides and seeds.

- The *own exact root* is in float64 what the method tracks, without its polynomial, its cap and its dtype: Shampoo's
  moment by `eigh`, for congruence with its start and damping, for binomial with the β2 that it implies at each refresh;
  for whitening, which has another fixed point, KL-Shampoo's factors by `eigh`, of gradients scaled to the same energy,
  with the weights that whitening gave them. *Shampoo's root* is that of the moment with β2 = 0.95 and the
  regularisation of `method="exact"`. An error is the relative Frobenius norm of the difference after the best scaling,
  thus the sine of the angle whose cosine stands beside it. *Cosine of L G R* is that of the newest gradient as the
  method and its own exact root precondition it.
- *Itself in float64* is the same method on the same gradients.
- *Asymmetry* is ‖L − Lᵀ‖ / ‖L‖ in the Frobenius norm.
- *Memory* is 1 over the weight that the newest gradient gets in the second moment. A refresh is *cut short* where the
  cap on the step keeps it from giving the weight that β2 asks for; the share is that of the refreshes so far.
- *Condition* is that of the moving average, over about 20 steps, of `VVᵀ` and `VᵀV`, with V the gradient as it is
  preconditioned, or raw; {SINGULAR:.0e} stands for a null space. *Whiteness* is `(tr X)² / (d·tr X²)` of the average:
  1 where all eigenvalues are equal, 1/d where one has everything.
"""


@dataclass(frozen=True)
class Chapter:
    """The records of one task at one size and length."""

    name: str
    title: str
    records: Sequence[Record]


def chapters(records: Sequence[Record]) -> list[Chapter]:
    """The records by task, size and steps, in the order in which these first appear."""
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in records:
        groups.setdefault((record["task"], record["size"], record["steps"]), []).append(record)
    return [
        Chapter(task.replace(":", "-"), f"{members[0]['title']} ({size}, {steps} steps)", members)
        for (task, size, steps), members in groups.items()
    ]


def values(records: Sequence[Record], point: int, measure: str) -> list[float]:
    """What was measured at the `point`-th point, from 0, over seeds, blocks and sides; none where nothing was."""
    blocks = [block for r in records if point < len(r["points"]) for block in r["points"][point]["blocks"] if block]
    return [value for block in blocks for value in block[measure] or ()]


def page(command: str, records: Sequence[Record], images: str) -> str:
    """The page; `images` is the folder of the pictures as the page names it, empty where they lie beside it."""
    lines = [*opening("error", QUESTION, command, records), _EXPLAINED]
    for chapter in chapters(records):
        lines += [f"## {chapter.title}", "", *_followed(chapter.records), ""]
        lines += [*_table(chapter.records, _DISTANCES), "", *_table(chapter.records, _REST), ""]
        lines += [f"![Roots during training: {chapter.title}]({images}{picture_file(f'error-{chapter.name}')})", ""]
    return "\n".join(lines)


def _followed(records: Sequence[Record]) -> list[str]:
    shown = dict.fromkeys(
        f"`{b['name']}` ({b['shape'][0]} × {b['shape'][1]}, block {b['block']} of {b['of']})"
        for record in records
        for b in record["blocks"]
    )
    lost = [
        f"{r['label']} diverged at step {r['diverged_at']} with seed {r['seed']}." for r in records if r["diverged_at"]
    ]
    return [" ".join([f"Blocks followed: {', '.join(shown)}.", *lost])]


def _table(records: Sequence[Record], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    labels = dict.fromkeys(record["label"] for record in records)
    lines = [["method", *(heading for _, heading, _ in columns)], ["---"] * (1 + len(columns))]
    for label in labels:
        mine = [record for record in records if record["label"] == label]
        lines.append([label, *(_cell(mine, measure, spec) for measure, _, spec in columns)])
    return [f"| {' | '.join(line)} |" for line in lines]


def _cell(records: Sequence[Record], measure: str, spec: str) -> str:
    last = max(len(record["points"]) for record in records)
    points = sorted({0, min(POINTS, last) // 2 - 1, last - 1}) if last > 1 else [0]
    found = [values(records, point, measure) for point in points]
    return " → ".join(f"{median(some):{spec}}" for some in found if some) or "–"


def picture(chapter: Chapter) -> str:
    """What was measured over the steps of one task, as SVG: medians, with the range over blocks, sides and seeds."""
    # four methods have a colour each, which a report of all optimizers has not; Jorge's and Shampoo's are the same
    look = {name: Style(COLOURS[i], DASHES[i]) for i, name in enumerate(OPTIMIZERS)}
    figure = Figure(figsize=(10.4, 6.4), layout="constrained")
    figure.patch.set_alpha(0)
    panels = list(figure.subplots(2, 3).flat)
    for axes, (measure, raw, label, scale) in zip(panels, _PANELS, strict=True):
        for optimizer in dict.fromkeys(record["optimizer"] for record in chapter.records):
            mine = [record for record in chapter.records if record["optimizer"] == optimizer]
            steps, found = _course(mine, measure)
            if not steps:
                continue
            style = look[optimizer]
            axes.plot(
                steps,
                [median(some) for some in found],
                color=style.colour,
                linestyle=dashes(style),
                linewidth=2,
                label=mine[0]["label"],
            )
            if raw:
                steps, found = _course(mine, raw)
                axes.plot(steps, [median(some) for some in found], color=style.colour, linestyle="dotted", linewidth=1)
            else:
                axes.fill_between(steps, [*map(min, found)], [*map(max, found)], color=style.colour, alpha=0.12, lw=0)
        axes.set_yscale(scale)
        axes.set_xlabel("optimizer steps")
        axes.set_ylabel(label)
        decorate(axes)
    legend(figure, panels)
    return svg(figure, f"Roots during training: {chapter.title}")


def _course(records: Sequence[Record], measure: str) -> tuple[list[int], list[list[float]]]:
    """The steps at which something was measured, and all that was at each."""
    longest = max(records, key=lambda record: len(record["points"]))
    found = [(point["step"], values(records, i, measure)) for i, point in enumerate(longest["points"])]
    return [step for step, some in found if some], [some for _, some in found if some]


def write(path: Path, command: str, records: Sequence[Record], images: str = "") -> None:
    """Write the page to `path`, and its pictures into the folder `images` beside it."""
    folder = path.parent / images
    folder.mkdir(parents=True, exist_ok=True)
    for chapter in chapters(records):
        (folder / picture_file(f"error-{chapter.name}")).write_text(on_white(picture(chapter)), encoding="utf-8")
    path.write_text(page(command, records, f"{images}/" if images else ""), encoding="utf-8")
