"""The still pictures: loss against steps and seconds, and performance profiles, as SVG for documents and for print."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from math import isfinite
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, PercentFormatter

from jorge_lab.report.columns import UNIT_NAMES
from jorge_lab.report.styles import INK, MARKERS, OTHER_MARKER, Style
from jorge_lab.statistics.curves import AXES, Axis, Curve, logarithmic
from jorge_lab.statistics.profiles import Profile

#: The text's colour on white paper.
_ON_WHITE = "#222222"
_LOG_TICKS = (1, 2, 5)


def dashes(style: Style) -> str | tuple[int, tuple[int, ...]]:
    """The dashes of a line as matplotlib wants them."""
    # matplotlib counts dashes in widths of the line, which is 2 points
    return (0, tuple(max(1, length // 2) for length in style.dashes)) if style.dashes else "solid"


def _draw(axes: Axes, curves: Sequence[Curve], axis: Axis, target: float | None, styles: Mapping[str, Style]) -> None:
    for curve in curves:
        x = curve.steps if axis == "steps" else curve.seconds
        style = styles[curve.row.optimizer]
        marker = MARKERS.get(curve.row.setting, OTHER_MARKER)[1]
        axes.plot(
            x,
            curve.loss,
            color=style.colour,
            linestyle=dashes(style),
            linewidth=2,
            marker=marker,
            markersize=4,
            markevery=max(1, len(x) // 12),
            label=curve.row.name,
        )
        if curve.seeds > 1:
            axes.fill_between(x, curve.low, curve.high, color=style.colour, alpha=0.18, lw=0)
    if target is not None:
        axes.axhline(target, color=INK, linewidth=1, linestyle="dotted", label="target")
    if logarithmic(curves):
        axes.set_yscale("log")
        wide = max(c.high.max() for c in curves) > 20 * min(c.low.min() for c in curves)
        axes.yaxis.set_major_locator(LogLocator(10) if wide else LogLocator(10, subs=_LOG_TICKS))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("optimizer steps" if axis == "steps" else "seconds of training")
    axes.set_ylabel("training loss, smoothed")
    decorate(axes)


def _draw_profile(axes: Axes, profile: Profile, styles: Mapping[str, Style]) -> None:
    known = [f for factors in profile.factors.values() for f in factors if isfinite(f)]
    end = 1.1 * max([2.0, *known])
    for label, factors in profile.factors.items():
        style = styles[profile.optimizers[label]]
        x = [1.0, *sorted({f for f in factors if isfinite(f) and f > 1}), end]
        y = [profile.fraction(label, tau) for tau in x]
        axes.step(x, y, where="post", color=style.colour, linestyle=dashes(style), linewidth=2, label=label)
    axes.set_xscale("log")
    axes.set_xlim(1, end)
    axes.xaxis.set_major_locator(LogLocator(10, subs=_LOG_TICKS))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(-0.03, 1.03)
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    axes.set_xlabel(f"within this factor of the best, in {UNIT_NAMES[profile.unit]}")
    axes.set_ylabel(f"of {profile.tasks} tasks, {profile.setting}")
    decorate(axes)


def decorate(axes: Axes) -> None:
    """The grid and the ink of all panels."""
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    axes.patch.set_alpha(0)
    axes.tick_params(colors=INK, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)


def legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Every label of the panels once, below them."""
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if shown:
        look: dict[str, Any] = {"ncols": 4, "frameon": False, "labelcolor": INK, "fontsize": 8}
        figure.legend([*shown.values()], [*shown], loc="outside lower center", **look)


def svg(figure: Figure, description: str) -> str:
    """The figure as an `<svg>` element that says what it shows."""
    buffer = io.StringIO()
    FigureCanvasSVG(figure)
    # text stays text, and the same run gives the same file
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": description, "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = buffer.getvalue()
    opening, rest = svg[svg.index("<svg") :].split(">", 1)
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)  # the page decides; the viewBox keeps the shape
    return f'{opening} role="img" aria-label="{escape(description)}">{rest}'


def picture(curves: Sequence[Curve], target: float | None, title: str, styles: Mapping[str, Style]) -> str:
    """Loss against steps and against seconds; its ink is :data:`jorge_lab.report.styles.INK`."""
    height = 3.6 + 0.2 * (1 + len(curves)) / 4
    figure = Figure(figsize=(10.4, height), layout="constrained")
    figure.patch.set_alpha(0)
    panels = figure.subplots(1, 2)
    for panel, axis in zip(panels, AXES, strict=True):
        _draw(panel, curves, axis, target, styles)
    legend(figure, panels[:1])
    return svg(figure, f"Training loss against steps and seconds: {title}")


def profile_picture(rows: Sequence[Sequence[Profile]], styles: Mapping[str, Style]) -> str:
    """Performance profiles, a row of panels a setting; its ink is :data:`jorge_lab.report.styles.INK`."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(4.2 * columns, 3.4 * len(rows)), layout="constrained")
    figure.patch.set_alpha(0)
    panels = figure.subplots(len(rows), columns, squeeze=False)
    for line, profiles in zip(panels, rows, strict=True):
        for panel in line[len(profiles) :]:
            panel.set_axis_off()
        for panel, profile in zip(line, profiles, strict=False):
            _draw_profile(panel, profile, styles)
    legend(figure, [line[0] for line in panels])
    return svg(figure, "Performance profiles: the fraction of tasks within a factor of the best optimizer")


def on_page(svg: str) -> str:
    """A picture whose ink is the page's text colour."""
    return svg.replace(INK, "currentColor")


def on_white(svg: str) -> str:
    """A picture that stands by itself, on white paper."""
    opening, rest = svg.split(">", 1)
    return f'{opening} style="background:white">{rest}'.replace(INK, _ON_WHITE)
