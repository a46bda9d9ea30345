"""The documentation hangs together: links lead somewhere, nothing is out of reach, and what it shows can be run."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from jorge import Jorge, cli
from jorge.cost import estimate
from jorge.methods import METHODS, Method

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
GENERATED = DOCS / "generated"
FRONT = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
BESIDE = [ROOT / name / "README.md" for name in ("lab", "recipes")]
PAGES = [*FRONT, *(page for page in BESIDE if page.exists()), *sorted(DOCS.rglob("*.md"))]
#: Those that people write.
PROSE = [page for page in PAGES if GENERATED not in page.parents or page.name == "README.md"]

#: Those that say what is.
PRESENT = [page for page in PROSE if page.parent.name in ("guide", "understand", "reference", "contributing")]

_FENCED = re.compile(r"^```.*?^```$|^    .*?$|<!--.*?-->", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\]]|\\\])*?\]\(([^)\s]+)\)")


def named(page: Path) -> str:
    """A test's name."""
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """The text without its code."""
    return re.sub(r"`[^`]*`", "`code`", _FENCED.sub("", page.read_text(encoding="utf-8")))


def links(page: Path) -> Iterator[tuple[Path, str]]:
    """File and anchor of each link that does not leave the project."""
    for target in _LINK.findall(prose(page)):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield (page.parent / path).resolve() if path else page, anchor


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    for path, anchor in links(page):
        assert path.exists(), f"{named(page)}: no {path}"
        if anchor:
            assert anchor in anchors(path), f"{named(page)}: no heading #{anchor} in {named(path)}"


def test_everything_is_within_reach_of_the_readme() -> None:
    reached, ahead = {FRONT[0]}, [FRONT[0]]
    while ahead:
        page = ahead.pop()
        found = {path for path, _ in links(page)} - reached
        reached |= found
        ahead += [path for path in found if path.suffix == ".md"]
    assert {named(path) for path in DOCS.rglob("*") if path.is_file()} <= {named(p) for p in reached if p.is_file()}


def test_every_generated_file_says_which_command_made_it() -> None:
    index = (GENERATED / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:3] for line in index.splitlines() if line.startswith("|")]
    patterns = {
        pattern: command for files, command in rows for pattern in re.findall(r"`([^`]+)`", files) if "`" in command
    }
    for path in GENERATED.rglob("*"):
        name = str(path.relative_to(GENERATED))
        if path.is_file() and name != "README.md":
            command = next((c for pattern, c in patterns.items() if fnmatch(name, pattern)), "")
            assert "`jorge " in command or "`python " in command, f"{name} is not in docs/generated/README.md"
            if path.parent.name == "ablations":
                assert re.search(r"^`jorge ablate [\w-]+ ", path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("page", PRESENT, ids=named)
def test_the_guide_is_in_the_present(page: Path) -> None:
    assert re.findall(r"\b20\d\d-\d\d|\buntil 20|\bused to\b|\bno longer\b|\bso far not\b", prose(page)) == []


@pytest.mark.parametrize("page", PROSE, ids=named)
def test_one_word_for_one_thing(page: Path) -> None:
    assert re.findall(r"(?i)\b(?:cohort|bundle|bucket|tile|substep)s?\b", prose(page)) == []


def test_the_diff_of_the_readme_runs() -> None:
    """As in a training script, with a scheduler of the caller's."""
    diff = FRONT[0].read_text(encoding="utf-8").split("```diff\n")[1].split("```")[0]
    assert all(line[0] in "+ " for line in diff.splitlines())
    model = torch.nn.Linear(8, 2)
    before = model.weight.detach().clone()
    names = {
        "torch": torch,
        "model": model,
        "criterion": torch.nn.MSELoss(),
        "batches": [(torch.randn(4, 8), torch.randn(4, 2)) for _ in range(3)],
    }
    exec("\n".join(line[1:] for line in diff.splitlines()), names)
    assert isinstance(names["optimizer"], Jorge)
    assert names["optimizer"].param_groups[0]["lr"] < 3e-3  # the schedule is the new optimizer's
    assert not torch.equal(before, model.weight)


@pytest.mark.parametrize("method", METHODS)
def test_the_costs_of_the_methods_are_those_that_are_counted(method: str) -> None:
    cost = estimate({"weight": (256, 256)}, method=method)
    if METHODS[method].direction is Method.direction:  # `L G R`
        assert cost.direction_flops == 4 * 256**3
    page = (DOCS / "guide" / "methods.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{method}`"))
    assert row.split("|")[-2].split()[0] == f"{cost.refresh_flops / 256**3:.3g}"


def test_the_costs_of_the_others_are_those_that_are_counted() -> None:
    found = {rival.name: rival for rival in estimate({"weight": (256, 256)}, interval=1).rivals}
    text = FRONT[0].read_text(encoding="utf-8").split("## How it relates")[1]
    rows = [[cell.strip() for cell in line.split("|")] for line in text.splitlines() if line.startswith("|")]
    cells = {row[1]: row[3:6] for row in rows}
    cube = 256**3
    each, refresh, memory = cells["SOAP"]
    assert found["SOAP"].flops_per_step / cube == int(each) + int(refresh.split()[0])
    assert (found["SOAP"].state_bytes - found["AdamW"].state_bytes) / 4 == int(memory.split()[0]) * 256**2
    assert found["Muon"].flops_per_step / cube == int(cells["Muon"][0])
    each, refresh, _ = cells["Shampoo"]
    assert found["Shampoo"].flops_per_step / cube == int(each) + int(refresh.split()[0])
    assert f"{estimate({'weight': (256, 256)}).refresh_flops / cube:.3g}" == cells["Jorge"][1]


def commands() -> list[tuple[str, str]]:
    """Every `jorge …` and `python -m …` in the blocks of shell commands, with the page that has it."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line) for line in lines if line.startswith(("jorge ", "python -m "))]
    return found


@pytest.mark.parametrize(("page", "line"), commands(), ids=lambda each: each if isinstance(each, str) else "")
def test_commands_of_the_documentation_are_understood(page: str, line: str) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "jorge":
        cli._parser(words[1]).parse_args(words[1:])
    else:
        assert importlib.util.find_spec(words[2]) is not None
