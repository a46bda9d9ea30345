"""The command `python -m jorge.testing MODULE:FACTORY …`."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from operator import attrgetter

import torch
from torch import nn

from jorge.testing import CHECKS, Factory, conformance, table


def find(text: str) -> Factory:
    """The factory that `module:name` stands for.

    Raises:
        argparse.ArgumentTypeError: there is none.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name):
        raise argparse.ArgumentTypeError(f"write a factory as module:name, not {text!r}")
    try:
        loaded = importlib.import_module(module)
    except Exception as error:  # a module may fail in any way while it is imported
        lines = [*str(error).splitlines(), ""]
        raise argparse.ArgumentTypeError(f"{module!r} cannot be imported: {lines[0]}") from None
    try:
        factory: Factory = attrgetter(name)(loaded)
    except AttributeError:
        raise argparse.ArgumentTypeError(f"{module!r} has no {name!r}") from None
    if not callable(factory):
        raise argparse.ArgumentTypeError(f"{text!r} is no factory: it cannot be called")
    return factory


class _Parser(argparse.ArgumentParser):
    """One line for a mistake, without the usage above it."""

    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(2, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of some optimizers; 0 if all pass, 1 if some fail, 2 where an argument is wrong."""
    parser = _Parser(
        prog="python -m jorge.testing",
        description="Check what a good torch.optim.Optimizer does, on any optimizer.",
    )
    parser.add_argument(
        "factories", nargs="+", metavar="MODULE:FACTORY", help="a class or a function that takes the parameters"
    )
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    parser.add_argument("--strict", action="store_true", help="what goes beyond torch counts too")
    parser.add_argument("--fast", action="store_true", help="leave out what starts a process")
    given = parser.parse_args(arguments)
    try:
        factories = [(text, find(text)) for text in given.factories]
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    for text, factory in factories:
        try:
            made: object = factory([nn.Parameter(torch.ones(3, 4))])
        except Exception as error:  # whatever an optimizer may raise
            parser.error(f"{text} cannot be built on a matrix: {type(error).__name__}: {error}")
        if not isinstance(made, torch.optim.Optimizer):
            parser.error(f"{text} returns a {type(made).__name__}, not an optimizer")
    checks = [check for check in CHECKS if not (given.fast and check.slow)]
    reports = [conformance(factory, text.partition(":")[2], checks) for text, factory in factories]
    print(table(reports, markdown=given.markdown))
    good = all(not report.failures if given.strict else report.passed for report in reports)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
