"""Checks of what a good `torch.optim.Optimizer` does, for any optimizer. They need torch alone.

>>> import torch
>>> from jorge import testing
>>> report = testing.conformance(torch.optim.SGD, checks=testing.CHECKS[:3])
>>> print(report)
                 SGD
training:
  least-squares  ✓
  network        ✓
  zero-lr        ✓
passed           3 of 3
>>> report.passed
True
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from jorge.testing import (
    checkpoints,
    groups,
    hooks,
    process,
    repeatable,
    robustness,
    schedules,
    shapes,
    state,
    training,
)
from jorge.testing.check import BEYOND, Check, Factory, NotApplicable, Outcome, Result
from jorge.testing.report import Report, table

__all__ = [
    "BEYOND",
    "CHECKS",
    "Check",
    "Factory",
    "NotApplicable",
    "Outcome",
    "Report",
    "Result",
    "conformance",
    "parametrize",
    "table",
]

_Test = TypeVar("_Test", bound=Callable[..., Any])
_MODULES = (training, shapes, groups, state, checkpoints, schedules, hooks, robustness, repeatable, process)
_FOUND = [check for module in _MODULES for check in module.CHECKS]
#: Every check, those that go beyond torch last.
CHECKS: tuple[Check, ...] = tuple(sorted(_FOUND, key=lambda check: check.group == BEYOND))


def conformance(factory: Factory, name: str | None = None, checks: Sequence[Check] = CHECKS) -> Report:
    """Run the checks on an optimizer, each by itself: none stops the others.

    Args:
        factory: builds the optimizer from whatever torch's own take: parameters, named parameters, param groups.
        name: the optimizer's name in the report; the factory's own if None.
        checks: those to run.
    """
    return Report(name or name_of(factory), tuple(check.outcome(factory) for check in checks))


def name_of(factory: Factory) -> str:
    """The name of a factory, as reports have it."""
    return str(getattr(factory, "__name__", type(factory).__name__))


def parametrize(*factories: Factory, checks: Sequence[Check] = CHECKS) -> Callable[[_Test], _Test]:
    """A decorator for pytest: one test for each check and factory, with the arguments `check` and `factory`.

    A check that does not apply is a test that is skipped.
    """
    import pytest

    cases = [
        pytest.param(check, factory, id=f"{name_of(factory)}-{check}") for factory in factories for check in checks
    ]
    marked: Callable[[_Test], _Test] = pytest.mark.parametrize(("check", "factory"), cases)
    return marked
