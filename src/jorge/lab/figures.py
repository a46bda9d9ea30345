"""Loss against steps and against seconds, as SVG: mean over seeds, with a band of one standard deviation."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from jorge.lab.contenders import CONTENDERS
from jorge.lab.run import Record
from jorge.lab.summary import Row, smooth

#: Okabe and Ito's colours, which the colour-blind can tell apart, and dashes for those who print in grey.
STYLES: dict[str, tuple[str, str | tuple[int, tuple[int, ...]]]] = {
    "jorge": ("#D55E00", "solid"),
    "sgd": ("#0072B2", (0, (6, 2))),
    "adamw": ("#009E73", (0, (3, 2))),
    "shampoo": ("#CC79A7", (0, (6, 2, 1, 2))),
    "jorge-congruence": ("#E69F00", (0, (4, 1))),
    "jorge-binomial": ("#56B4E9", (0, (2, 1))),
}
OTHER: tuple[str, str | tuple[int, tuple[int, ...]]] = ("#888888", "solid")
#: Stands for the page's text colour until the SVG is written.
_INK = "#010203"

Axis = Literal["steps", "seconds"]


def curve(records: Sequence[Record], axis: Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, mean smoothed loss and its standard deviation over seeds, up to the shortest run.

    Seconds are the mean over seeds at which each step was done.
    """
    losses = [smooth(r["losses"], r["steps"]) for r in records]
    length = min(map(len, losses))
    window = max(1, records[0]["steps"] // 20)
    values = np.array([loss[:length] for loss in losses])
    if axis == "steps":
        x = np.arange(window, window + length, dtype=float)
    else:
        x = np.array([r["seconds"][window - 1 : window - 1 + length] for r in records]).mean(0)
    return x, values.mean(0), values.std(0)


def _draw(axes: Axes, records: Sequence[Record], rows: Sequence[Row], axis: Axis) -> None:
    lowest, highest = np.inf, 0.0
    for row in rows:
        mine = [r for r in records if r["optimizer"] == row.optimizer and len(smooth(r["losses"], r["steps"])) > 1]
        if not mine:
            continue
        x, mean, spread = curve(mine, axis)
        color, dashes = STYLES.get(row.optimizer, OTHER)
        label = CONTENDERS[row.optimizer].label if row.optimizer in CONTENDERS else row.optimizer
        axes.plot(x, mean, color=color, linestyle=dashes, linewidth=2, label=label)
        if len(mine) > 1:
            axes.fill_between(x, np.maximum(mean - spread, mean / 3), mean + spread, color=color, alpha=0.18, lw=0)
        lowest, highest = min(lowest, float(mean.min())), max(highest, float(mean.max()))
    target = next((row.target for row in rows if row.target is not None), None)
    if target is not None:
        axes.axhline(target, color=_INK, linewidth=1, linestyle="dotted", label="target")
    if lowest > 0 and highest > 4 * lowest:
        axes.set_yscale("log")
        if highest > 20 * lowest:
            axes.yaxis.set_major_locator(LogLocator(10))
        else:
            axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("optimizer steps" if axis == "steps" else "seconds of training")
    axes.set_ylabel("training loss, smoothed")
    axes.grid(color=_INK, alpha=0.15, linewidth=0.6)
    for spine in ("top", "right"):
        axes.spines[spine].set_visible(False)


def _svg(figure: Figure, description: str) -> str:
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    # text stays text, and the same run gives the same file
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": description, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    opening, rest = svg[svg.index("<svg") :].split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)  # the page decides; the viewBox keeps the shape
    return f'{opening} role="img" aria-label="{description}">{rest}'


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(5.2 * panels, 3.6), layout="constrained")
    axes = figure.subplots(1, panels, squeeze=False)[0]
    return figure, list(axes)


def _style(axes: Axes) -> None:
    axes.patch.set_alpha(0)
    axes.tick_params(colors=_INK, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(_INK)
    for spine in axes.spines.values():
        spine.set_color(_INK)


def plot(records: Sequence[Record], rows: Sequence[Row], axis: Axis) -> str:
    """One panel as an SVG whose ink is the page's text colour, for the report."""
    figure, (axes,) = _figure(1)
    figure.patch.set_alpha(0)
    _draw(axes, records, rows, axis)
    _style(axes)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, labelcolor=_INK)
    return _svg(figure, f"training loss against {axis}").replace(_INK, "currentColor")


def picture(records: Sequence[Record], rows: Sequence[Row], title: str) -> str:
    """Both panels as a free-standing SVG on white."""
    figure, axes = _figure(2)
    figure.suptitle(title)
    for panel, axis in zip(axes, ("steps", "seconds"), strict=True):
        _draw(panel, records, rows, "steps" if axis == "steps" else "seconds")
    if axes[0].get_legend_handles_labels()[1]:
        axes[0].legend(frameon=False)
    return _svg(figure, title).replace(_INK, "#222222")
