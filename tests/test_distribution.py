"""What the distributions hold: the optimizer's has none of the laboratory."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def built(folder: Path, kind: str, out: Path) -> list[str]:
    """The files of the wheel or the source distribution of a folder."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)],
        cwd=folder,
        capture_output=True,
        check=True,
        timeout=120,
    )
    (path,) = out.iterdir()
    if kind == "wheel":
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with tarfile.open(path) as source:
        return [name.partition("/")[2] for name in source.getnames()]


@pytest.mark.slow
def test_the_wheel_of_the_optimizer_is_the_optimizer(tmp_path: Path) -> None:
    names = [name for name in built(ROOT, "wheel", tmp_path) if ".dist-info/" not in name]
    there = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "jorge").rglob("*.py")}
    assert set(names) == there | {"jorge/py.typed"}


@pytest.mark.slow
def test_the_source_of_the_optimizer_has_no_laboratory(tmp_path: Path) -> None:
    names = built(ROOT, "sdist", tmp_path)
    assert "src/jorge/optimizer.py" in names
    assert not [name for name in names if name.split("/")[0] == "lab" or "jorge_lab" in name]


@pytest.mark.slow
def test_the_wheel_of_the_laboratory_has_what_runs_need_and_no_records(tmp_path: Path) -> None:
    names = built(ROOT / "lab", "wheel", tmp_path)
    needed = {"contenders/tuned.json", "report/templates/report.html", "commands/compare.py", "py.typed"}
    assert {f"jorge_lab/{name}" for name in needed} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"jorge_lab"}
    assert not [name for name in names if name.endswith(".gz")]
