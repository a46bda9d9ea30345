"""What is published: the distributions hold what they should, build to the same bytes, and are typed once installed."""

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from jorge import __version__

ROOT = Path(__file__).parents[1]
#: Of both distributions; the source distribution of the optimizer has its own alone.
FOLDERS = [folder for folder in (ROOT, ROOT / "lab") if folder.exists()]
pytestmark = pytest.mark.slow


def built(folder: Path, kind: str, out: Path) -> Path:
    """The wheel or the source distribution of a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    subprocess.run(command, cwd=folder, capture_output=True, check=True, timeout=120)
    (path,) = out.iterdir()
    return path


def names_in(path: Path) -> list[str]:
    """The files of a wheel or, without the folder that all are in, of a source distribution."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    with tarfile.open(path) as source:
        return [name.partition("/")[2] for name in source.getnames()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(ROOT, "sdist", tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def of_the_laboratory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (ROOT / "lab").exists():
        pytest.skip("the source distribution has no laboratory")
    return built(ROOT / "lab", "wheel", tmp_path_factory.mktemp("lab"))


def test_the_wheel_of_the_optimizer_is_the_optimizer(wheel: Path) -> None:
    """No test, task or record."""
    names = [name for name in names_in(wheel) if ".dist-info/" not in name]
    there = {str(path.relative_to(ROOT / "src")) for path in (ROOT / "src" / "jorge").rglob("*.py")}
    assert set(names) == there | {"jorge/py.typed"}


def test_the_source_of_the_optimizer_is_what_is_kept_without_the_laboratory(source: Path) -> None:
    """With its tests and all that they read."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a checkout knows which files are kept")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    kept = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    wanted = {name for name in kept if (ROOT / name).exists() and name.split("/")[0] not in ("lab", ".ci")}
    assert {"tests/golden/trajectories.json", "conftest.py", "src/jorge/optimizer.py"} < wanted
    assert set(names_in(source)) == wanted | {"PKG-INFO"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: "lab" if folder.name == "lab" else "jorge")
def test_all_builds_to_the_same_bytes_wherever_and_whenever_it_lies(folder: Path, tmp_path: Path) -> None:
    source = built(folder, "sdist", tmp_path / "sdist")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path / "moved", filter="data")
    (moved,) = (tmp_path / "moved").iterdir()
    for path in moved.rglob("*"):
        os.utime(path, (1e9, 1e9))
    for kind in ("sdist", "wheel"):
        first = source if kind == "sdist" else built(folder, kind, tmp_path / kind)
        assert built(moved, kind, tmp_path / f"moved {kind}").read_bytes() == first.read_bytes(), kind


def test_the_wheel_of_the_laboratory_has_what_runs_need_and_no_records(of_the_laboratory: Path) -> None:
    names = names_in(of_the_laboratory)
    needed = {"contenders/tuned.json", "report/templates/report.html", "commands/compare.py", "py.typed"}
    assert {f"jorge_lab/{name}" for name in needed} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"jorge_lab"}
    assert not [name for name in names if name.endswith(".gz")]


class Outside:
    """An environment with a wheel, the torch that is here, and nothing of the checkout."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True, timeout=120)
        self.folder, self.python = folder, folder / "env" / "bin" / "python"
        self.packages = next((folder / "env" / "lib").glob("python*")) / "site-packages"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)
        # What torch lies among, as a folder of modules: the editable install there is by a `.pth` that is not read.
        (self.packages / "torch.pth").write_text(str(Path(torch.__file__).parents[1]))

    def run(self, command: Sequence[str | Path], status: int = 0) -> str:
        """What a command prints that is run in the folder and ends with a status."""
        environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "MYPYPATH")}
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, env=environment, timeout=300)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout


@pytest.fixture
def outside(wheel: Path, tmp_path: Path) -> Outside:
    return Outside(tmp_path, wheel)


def test_an_installed_wheel_runs(outside: Outside) -> None:
    python: list[str | Path] = [outside.python, "-P", "-W", "ignore"]
    found = outside.run(
        [*python, "-c", "import jorge, importlib.metadata as m; print(jorge.__file__, m.version('jorge'))"]
    )
    where, version = found.split()
    assert Path(where).is_relative_to(outside.packages)
    assert version == __version__
    assert outside.run([*python, ROOT / "tests" / "smoke.py"]).startswith("jorge steps on Python")
    outside.run([*python, ROOT / "tests" / "typed_program.py"])


def test_a_type_checker_sees_the_types_of_an_installed_wheel(outside: Outside) -> None:
    """And would see none without the marker. Pyright's part is `make package`."""
    pytest.importorskip("mypy")
    shutil.copy(ROOT / "tests" / "typed_program.py", outside.folder / "program.py")
    check: list[str | Path] = [sys.executable, "-m", "mypy", "--strict", "--python-executable", outside.python]
    check.append("program.py")
    assert "Success: no issues found in 1 source file" in outside.run(check)
    (outside.packages / "jorge" / "py.typed").unlink()
    assert "module is installed, but missing library stubs or py.typed marker" in outside.run(check, status=1)
