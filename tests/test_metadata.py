"""What the project says of itself in several places is the same in all: version, Pythons, torch, licence, workflows."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

ROOT = Path(__file__).parents[1]
LAB = ROOT / "lab"
#: Both distributions; the source distribution of the optimizer has its own alone.
FOLDERS = [folder for folder in (ROOT, LAB) if folder.exists()]


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def project(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(text(f".github/workflows/{name}.yml"))
    return found


def version() -> str:
    (found,) = re.findall(r'^__version__ = "(.+)"$', text("src/jorge/__init__.py"), re.MULTILINE)
    return str(found)


def classified(folder: Path, prefix: str) -> list[str]:
    return [each.removeprefix(prefix) for each in project(folder)["classifiers"] if each.startswith(prefix)]


def pythons() -> list[str]:
    return [each for each in classified(ROOT, "Programming Language :: Python :: ") if "." in each]


def oldest_torch() -> str:
    (found,) = (each.removeprefix("torch>=") for each in project(ROOT)["dependencies"])
    return str(found)


def test_the_version_is_the_same_everywhere() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", version())
    assert yaml.safe_load(text("CITATION.cff"))["version"] == version()
    if LAB.exists():
        assert f'\n__version__ = "{version()}"\n' in text("lab/src/jorge_lab/__init__.py")
        assert f"jorge=={version()}" in project(LAB)["dependencies"]


def test_the_changelog_begins_with_this_version_and_its_date_is_the_citations() -> None:
    headings = re.findall(r"^## (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    match = re.fullmatch(rf"{re.escape(version())} \((unreleased|\d{{4}}-\d\d-\d\d)\)", headings[0])
    assert match, headings[0]
    released = yaml.safe_load(text("CITATION.cff")).get("date-released", "unreleased")
    assert str(released) == match[1]


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "lab" if folder.name == "lab" else "jorge")
def test_both_distributions_claim_the_same(folder: Path) -> None:
    mine, first = project(folder), project(ROOT)
    for key in ("requires-python", "license", "license-files", "authors"):
        assert mine[key] == first[key], key
    for prefix in ("Programming Language :: ", "Development Status :: ", "Typing :: "):
        assert classified(folder, prefix) == classified(ROOT, prefix)
    assert (folder / "LICENSE").read_text(encoding="utf-8") == text("LICENSE")


def test_the_oldest_python_is_the_same_everywhere() -> None:
    oldest, *_ = pythons()
    assert project(ROOT)["requires-python"] == f">={oldest}"
    assert f"needs Python {oldest} or newer" in text("CONTRIBUTING.md")
    assert f"sys.version_info < ({oldest.replace('.', ', ')})" in text("Makefile")
    assert tomllib.loads(text("pyproject.toml"))["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert f"Python {oldest} to {pythons()[-1]}" in text("docs/guide/versions.md")


def test_the_oldest_torch_is_the_same_everywhere() -> None:
    assert f"torch>={oldest_torch()} " in text("README.md")
    assert f"\ntorch>={oldest_torch()}," in text("constraints.txt")
    assert f"torch {oldest_torch()} or newer" in text("docs/guide/versions.md")


def test_licence_status_and_paper_are_the_readmes() -> None:
    citation, readme = yaml.safe_load(text("CITATION.cff")), text("README.md")
    assert citation["license"] == project(ROOT)["license"]
    assert f"Licence: {citation['license']};" in readme
    (status,) = classified(ROOT, "Development Status :: ")
    assert f"**Status: {status.split(' - ')[1].lower()}**" in readme
    paper = citation["preferred-citation"]
    assert paper["title"] in " ".join(readme.split())
    assert paper["journal"].rpartition(":")[2] in readme
    assert project(ROOT)["urls"]["Paper"] in readme


def test_the_wheels_are_tried_on_all_that_is_claimed_before_they_are_published() -> None:
    jobs = workflow("release")["jobs"]
    assert jobs["smoke"]["strategy"]["matrix"] == {
        "python": pythons(),
        "torch": [f"torch=={oldest_torch()}.*", "torch"],
    }
    assert workflow("ci")["jobs"]["smoke"]["strategy"]["matrix"] == {"python": pythons()}
    assert set(jobs["publish"]["needs"]) == jobs.keys() - {"publish"}


def test_what_is_published_needs_no_secret() -> None:
    """The index trusts the workflow: by the identity of this one job, and each distribution by its own environment."""
    published = workflow("release")["jobs"]["publish"]
    assert published["permissions"] == {"id-token": "write"}
    assert "secrets." not in text(".github/workflows/release.yml")
    names = {each["distribution"]: each["files"] for each in published["strategy"]["matrix"]["include"]}
    assert names.keys() >= {project(folder)["name"] for folder in FOLDERS}
    assert all(files == name.replace("-", "_") for name, files in names.items())


@pytest.mark.parametrize("name", ["ci", "release"])
def test_a_workflow_runs_what_there_is(name: str) -> None:
    """Targets of make with their variables, and files."""
    targets = set(re.findall(r"^([\w-]+):", text("Makefile"), re.MULTILINE))
    variables = set(re.findall(r"^(\w+) \?=", text("Makefile"), re.MULTILINE))
    steps = [step.get("run", "") for job in workflow(name)["jobs"].values() for step in job["steps"]]
    called = [step for step in steps if step.startswith("make ")]
    assert called
    for step in called:
        assert step.split()[1] in targets, step
        assert set(re.findall(r"(\w+)=(?!=)", step)) <= variables, step
        for path in re.findall(r"\b(?:lab/)?tests/\w+\.py", step):
            assert (ROOT / path).exists() or not LAB.exists(), path
