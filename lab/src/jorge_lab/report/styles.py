"""How curves look: a colour and a dash for each optimizer, a marker for each setting, the same all over a report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: Stands for the page's text colour until a figure is written.
INK = "#010203"
#: Okabe and Ito's colours, which the colour-blind can tell apart, without the yellow, which white paper swallows.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", INK)
#: Lengths of dashes and gaps, in points; 6 dashes and 7 colours have no common factor: the first 42 pairs all differ.
DASHES: tuple[tuple[int, ...], ...] = ((), (7, 2), (3, 2), (7, 2, 2, 2), (1, 2), (12, 3))
#: The optimizers that keep their look in every report; others follow in their order.
KNOWN = ("jorge", "sgd", "adamw", "shampoo", "soap", "muon", "psgd")
#: Setting → marker, by plotly's name and by matplotlib's.
MARKERS = {"transferred": ("", ""), "tuned": ("circle", "o"), "default": ("x", "x")}
OTHER_MARKER = ("diamond", "D")


@dataclass(frozen=True)
class Style:
    """A curve's colour, and its dashes as lengths of ink and gap in points; none for a solid line."""

    colour: str
    dashes: tuple[int, ...]


def styles(optimizers: Iterable[str]) -> dict[str, Style]:
    """A style for each optimizer."""
    names = dict.fromkeys([*KNOWN, *optimizers])
    return {name: Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]) for i, name in enumerate(names)}


def on_page(colour: str) -> str:
    """The colour in the page's style sheets."""
    return "currentColor" if colour == INK else colour
