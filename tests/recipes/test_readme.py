"""The page of the recipes: its commands are understood, its predictions are those that are made."""

import importlib
import re
import shlex
from argparse import Namespace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "recipes" / "README.md"
_COMMAND = re.compile(r"^(?:python|torchrun .*?) -m recipes\.(\w+) (.*)$", re.MULTILINE)
COMMANDS = _COMMAND.findall(PAGE.read_text(encoding="utf-8"))


class Understood(Exception):  # noqa: N818 - no error
    """The arguments have been read."""


@pytest.mark.parametrize(("name", "words"), COMMANDS)
def test_a_command_is_understood(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name not in ("gpt", "cifar10"):
        pytest.importorskip("torchvision")
        pytest.importorskip("pycocotools")
    recipe = importlib.import_module(f"recipes.{name}")

    def stop(args: Namespace) -> None:
        raise Understood(args)

    monkeypatch.setattr(recipe, "started", stop)
    with pytest.raises(Understood) as found:
        recipe.main(shlex.split(words))
    args = found.value.args[0]
    assert args.optimizer == "jorge"
    if "--speedrun" in words:
        assert (args.target, args.batch_size * args.context, args.steps) == (3.28, 524_288, 5625)


def test_every_recipe_has_a_command_and_a_row() -> None:
    text = PAGE.read_text(encoding="utf-8")
    recipes = {path.stem for path in PAGE.parent.glob("*.py")} - {"settings", "order", "loop", "coco", "costs"}
    assert {name for name, _ in COMMANDS} == recipes
    for name in recipes:
        assert f"| [{name}]({name}.py) |" in text
        assert len((PAGE.parent / f"{name}.py").read_text(encoding="utf-8").splitlines()) <= 250


@pytest.mark.slow
def test_the_costs_are_those_that_are_predicted() -> None:
    pytest.importorskip("torchvision")
    from recipes import costs

    if not costs.RECORD.exists():
        pytest.skip("the record is with the laboratory")
    quoted = re.search(r"<!-- costs:begin -->\n(.*?)<!-- costs:end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert quoted
    assert quoted.group(1).strip() == costs.table()
