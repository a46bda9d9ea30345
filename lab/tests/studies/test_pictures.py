"""The pictures of "From Shampoo to Jorge": what they are of, and that the committed ones are these."""

import re
from pathlib import Path

import pytest
import torch

from jorge_lab.studies import pictures

IMAGES = Path(__file__).parents[3] / "docs" / "generated" / "images"


def test_the_more_refreshes_the_more_alike_are_singular_values() -> None:
    found = [float(values.log().std()) for values in pictures.spectra().values()]
    assert len(found) == 4
    assert found[0] > found[2] > found[3]
    assert found[3] < 0.6 * found[0]


def test_the_polynomial_is_right_on_its_range_and_the_series_at_zero() -> None:
    x = torch.linspace(0, 3, 101, dtype=torch.float64)
    exact = (1 + x) ** -0.25
    error = (pictures.polynomial(x) / exact - 1).abs()
    assert 0.01 < error.max() < 0.02
    assert (pictures.series(x) / exact - 1).abs()[x <= 0.5].max() < error.max() < (pictures.series(x) / exact - 1)[-1]


def test_each_method_comes_near_what_it_tracks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "FOLLOWED", 60)
    ends = {method: pictures.distances(method) for method in ("binomial", "congruence", "whitening")}
    for found in ends.values():
        assert found[-1] < found[0] / 4
    assert ends["congruence"][-1] < 0.02 < ends["whitening"][-1] < ends["binomial"][-1] * 1.2


def test_two_sides_pay_on_a_problem_of_two_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "RATES", (1.0, 0.3))
    last = {name: pictures.best(build)[1][-1] for name, build in pictures.CONTENDERS.items()}
    assert max(last["Jorge"], last["Shampoo"]) < 0.1 * min(last["SGD"], last["Adam"])


def words(svg: str) -> list[str]:
    """What stands in a picture."""
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_the_committed_picture_is_this_one(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its words and the number of its curves: digits of coordinates are the machine's."""
    if name == "toy":
        monkeypatch.setattr(pictures, "regression", lambda _, steps=150: [0.9**i for i in range(steps)])
    pictures.main([name, "--images", str(tmp_path)])
    drawn, committed = ((folder / f"{name}.svg").read_text(encoding="utf-8") for folder in (tmp_path, IMAGES))
    told, wanted = words(drawn), words(committed)
    if name == "toy":  # whose rates were not searched here, nor its ticks
        told, wanted = (
            [re.sub(r", lr .*", "", w) for w in each if w.strip("0123456789.−-")] for each in (told, wanted)
        )
    assert told == wanted
    assert drawn.count("<path") == pytest.approx(committed.count("<path"), rel=0.5)
