"""What a check is, and what comes of it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest import SkipTest

import torch

#: Builds an optimizer from parameters, from pairs of a name and a parameter, or from param groups.
Factory = Callable[[Any], torch.optim.Optimizer]
Result = Literal["passed", "failed", "not applicable"]

#: The group of the checks that torch's own optimizers fail, or that ask for more than a program needs. They do not
#: decide whether an optimizer passes.
BEYOND = "beyond torch"


class NotApplicable(SkipTest):
    """A check does not apply to an optimizer. The message says why."""


@dataclass(frozen=True)
class Check:
    """One property of an optimizer, and how to find out whether an optimizer has it.

    Args:
        name: its name, in words with hyphens.
        says: the property, as a sentence.
        group: what kind of property it is.
        run: takes a factory, and raises where the optimizer lacks the property.
        slow: it takes seconds, as it starts a process.

    >>> from jorge import testing
    >>> check = testing.CHECKS[0]
    >>> print(check, "-", check.says)
    least-squares - The loss of a least-squares problem falls.
    >>> check(torch.optim.SGD)
    """

    name: str
    says: str
    group: str
    run: Callable[[Factory], None]
    slow: bool = False

    def __str__(self) -> str:
        return self.name

    def __call__(self, factory: Factory) -> None:
        """Run the check, with seeds of its own and on one thread.

        Raises:
            NotApplicable: it does not apply to the optimizer.
            Exception: the optimizer lacks the property.
        """
        with _isolated():
            self.run(factory)

    def outcome(self, factory: Factory) -> Outcome:
        """Run the check and return what came of it."""
        try:
            self(factory)
        except NotApplicable as reason:
            return Outcome(self, "not applicable", str(reason))
        except Exception as error:  # whatever an optimizer raises is what the report is about
            return Outcome(self, "failed", one_line(error))
        return Outcome(self, "passed")


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Args:
        check: the check.
        result: `"passed"`, `"failed"` or `"not applicable"`.
        reason: why, in a line; empty where it passed.
    """

    check: Check
    result: Result
    reason: str = ""


def declare(group: str, says: str, name: str | None = None, slow: bool = False) -> Callable[..., Check]:
    """A decorator that makes a check of a function. Its name is the function's, with hyphens, where none is given."""

    def make(run: Callable[[Factory], None]) -> Check:
        return Check(name or run.__name__.strip("_").replace("_", "-"), says, group, run, slow)

    return make


def expect(condition: bool, otherwise: str) -> None:
    """Fail a check with a reason where a condition does not hold. Unlike `assert` it also works under `python -O`."""
    if not condition:
        raise AssertionError(otherwise)


def one_line(error: BaseException) -> str:
    """An error as a line: its message, after its type unless a check's own words say what is wrong."""
    # Without addresses, which differ in each run, and without the control sequences of terminals.
    lines = re.sub(r" at 0x[0-9a-f]+|\x1b\[[0-9;]*m", "", str(error)).split("\n")
    message = next((line.strip() for line in lines if line.strip()), "")
    if isinstance(error, AssertionError) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


@contextmanager
def _isolated() -> Iterator[None]:
    """Nothing that a check does to torch's seeds, threads, default dtype or grad mode is left behind."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    torch.set_num_threads(1)  # sums in another order are other sums
    try:
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), torch.enable_grad():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            yield
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
