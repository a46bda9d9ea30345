"""The frame of every command: how it is registered, and what is said of a mistake."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass

from jorge_lab.errors import LabError


@dataclass(frozen=True)
class Command:
    """A command of `jorge`.

    Args:
        name: what follows `jorge`.
        help: a line for the list of all commands.
        description: what its own help begins with.
        arguments: adds its arguments to a parser.
        run: does what the arguments say; the exit status. It may raise :class:`~jorge_lab.errors.LabError` or
            `ValueError`, whose message says what is wrong with the arguments, and `OSError`.
    """

    name: str
    help: str
    description: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]

    def add(self, commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        """Register the command."""
        parser = commands.add_parser(self.name, help=self.help, description=self.description)
        self.arguments(parser)
        parser.set_defaults(run=self)

    def __call__(self, args: argparse.Namespace) -> int:
        """Run; the exit status, which is 2 where the arguments are wrong. An interrupt is left to `jorge.cli.main`."""
        try:
            return self.run(args)
        except OSError as error:
            problem = f"cannot write {error.filename}: {error.strerror}"
        except (LabError, ValueError) as error:
            problem = str(error)
        print(f"jorge {self.name}: {problem}", file=sys.stderr)
        return 2
