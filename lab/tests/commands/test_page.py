"""The page of the commands is what the commands say."""

from pathlib import Path

from tools import commands

ROOT = Path(__file__).parents[3]


def test_the_page_is_current() -> None:
    written = (ROOT / "docs" / "generated" / "cli.md").read_text(encoding="utf-8")
    assert written == commands.page(), "write it again: python -m tools.commands > docs/generated/cli.md"


def test_it_has_every_command_and_flag() -> None:
    page = commands.page()
    for text in ("## jorge compare", "## jorge doctor", "`--budget X`", "`--optimizers A,B,…`", "default: 32"):
        assert text in page
