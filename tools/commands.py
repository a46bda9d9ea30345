"""The page of `jorge`'s commands: `python -m tools.commands > docs/generated/cli.md`; it needs the laboratory."""

from __future__ import annotations

import argparse
import re

from jorge import cli

_HEAD = """# Commands

`python -m tools.commands > docs/generated/cli.md` writes this page from the commands themselves; `jorge COMMAND --help`
says the same. `compare`, `tune`, `ablate`, `report` and `tasks` come with [the laboratory](../guide/laboratory.md).
"""
#: Where a command is explained.
_PAGES = {
    "cost": "../guide/cost.md",
    "doctor": "../guide/diagnostics.md#before-a-training",
    "tasks": "../guide/laboratory.md#tasks",
    "compare": "../guide/laboratory.md",
    "tune": "../guide/laboratory.md#what-is-fair-here",
    "ablate": "../guide/laboratory.md#ablations",
    "report": "../guide/laboratory.md#read-the-report",
}


def said(text: str | None, action: argparse.Action) -> str:
    """A help text as a cell of a table, with what argparse fills in."""
    values = {**vars(action), "prog": "jorge"}
    return re.sub(r"\s+", " ", (text or "") % values).replace("|", r"\|")


def row(action: argparse.Action) -> str:
    """A flag or an argument, with what it takes."""
    shown = " ".join(action.metavar) if isinstance(action.metavar, tuple) else action.metavar
    given = shown or ("" if action.choices is None else "{" + ",".join(map(str, action.choices)) + "}")
    if not action.option_strings:
        return f"| `{given or action.dest}` | {said(action.help, action)} |"
    takes = "" if action.nargs == 0 else f" {given or action.dest.upper()}"
    more = " …" if action.nargs in ("+", "*") else ""
    return f"| `{', '.join(action.option_strings)}{takes}{more}` | {said(action.help, action)} |"


def section(name: str, parser: argparse.ArgumentParser) -> str:
    """A command: what it is for, and its flags."""
    text = re.sub(r"\s+", " ", parser.description or "")
    rows = [row(action) for action in parser._actions if not isinstance(action, argparse._HelpAction)]
    link = f" [The page on it]({_PAGES[name]})."
    table = "\n".join(["| argument | what it does |", "|---|---|", *rows]) if rows else ""
    return f"## jorge {name}\n\n{text}{link}\n\n{table}".rstrip() + "\n"


def page() -> str:
    """The page."""
    commands = next(a for a in cli._parser(None)._actions if isinstance(a, argparse._SubParsersAction))
    found = {name: section(name, parser) for name, parser in commands.choices.items()}
    return "\n".join([_HEAD, *(found[name] for name in _PAGES)])


if __name__ == "__main__":
    print(page(), end="")
