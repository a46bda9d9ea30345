"""What the report's page needs in order to draw plots that zoom: the numbers of the curves, and plotly's script."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from plotly.offline import get_plotlyjs

from jorge_lab.report.styles import INK, MARKERS, OTHER_MARKER, Style
from jorge_lab.statistics.curves import Curve, logarithmic


def plot(
    curves: Sequence[Curve], target: float | None, styles: Mapping[str, Style], shown: Collection[tuple[str, str]]
) -> dict[str, Any]:
    """A section's curves as plain data, from which the page draws one plot against steps and one against seconds.

    A colour of None stands for the text's, which differs by scheme; `low` and `high` are None for a single seed. The
    curves whose row is not in `shown` appear when their name is clicked.
    """
    return {
        "curves": [_curve(c, styles[c.row.optimizer]) | {"shown": c.row.key in shown} for c in curves],
        "logarithmic": logarithmic(curves),
        "target": target,
    }


def _curve(curve: Curve, style: Style) -> dict[str, Any]:
    return {
        "name": curve.row.name,
        "colour": None if style.colour == INK else style.colour,
        "dash": ",".join(f"{length}px" for length in style.dashes) or "solid",
        "symbol": MARKERS.get(curve.row.setting, OTHER_MARKER)[0],
        "steps": _plain(curve.steps),
        "seconds": _plain(curve.seconds),
        "loss": _plain(curve.loss),
        "low": _plain(curve.low) if curve.seeds > 1 else None,
        "high": _plain(curve.high) if curve.seeds > 1 else None,
    }


def _plain(values: np.ndarray) -> list[float]:
    """Numbers as JSON holds them, with as many digits as a plot shows when it is zoomed."""
    return [float(f"{value:.5g}") for value in values]


def script() -> str:
    """The source of plotly.js, some 5 MB, to stand in the page once."""
    source: str = get_plotlyjs()
    return source.replace("</script", "<\\/script")
