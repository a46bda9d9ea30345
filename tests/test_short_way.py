"""The way of a step through the code is short: few files, and each parameter is looked at once before the work."""

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

import jorge
from jorge import Jorge

PACKAGE = str(Path(jorge.__file__).parent)


def calls(optimizer: Jorge) -> list[tuple[str, str]]:
    """File and function of each Python call in a step."""
    found: list[tuple[str, str]] = []

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            found.append((frame.f_code.co_filename, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
    return found


def stepped(count: int, steps: int, **options: Any) -> Jorge:
    params = [nn.Parameter(torch.randn(16, 12)) for _ in range(count)] + [nn.Parameter(torch.randn(16))]
    optimizer = Jorge([(f"p{i}", p) for i, p in enumerate(params)], lr=0.01, **options)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize(("grafting", "files", "changes", "most"), [("adam", 15, 108, 391), ("sgd", 12, 73, 249)])
def test_a_refreshing_step_of_a_matrix_and_a_bias_goes_through_few_files(
    grafting: str, files: int, changes: int, most: int
) -> None:
    found = [file for file, _ in calls(stepped(1, steps=19, grafting=grafting))]
    assert len(set(found)) <= files
    assert sum(a != b for a, b in pairwise(found)) <= changes
    assert len(found) <= most


@pytest.mark.parametrize("steps", [20, 19])  # without a refresh and with one
def test_one_more_parameter_is_one_more_look(steps: int) -> None:
    """What else is done for each parameter is done in one comprehension for all of a shape."""
    few, many = (Counter(calls(stepped(count, steps))) for count in (2, 12))
    grown = {function: many[function] - few[function] for function in many if many[function] != few[function]}
    assert [(Path(file).name, name, count) for (file, name), count in grown.items()] == [("store.py", "note", 10)]
