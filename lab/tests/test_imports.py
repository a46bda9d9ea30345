"""Which folder of the laboratory may import which."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "jorge_lab"
#: From the bottom: each may import those before it, and `errors`, which imports none.
ORDER = ("tasks", "contenders", "runs", "statistics", "cost", "tuning", "report", "studies", "commands")


def imported(path: Path) -> set[str]:
    """The modules of the laboratory that a module imports, wherever in it; of a package each name is a module."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "jorge_lab" else {module}
    return {name for name in found if name.split(".")[0] == "jorge_lab"}


def test_each_folder_imports_only_those_below() -> None:
    folders = {path.parent.relative_to(PACKAGE).parts[0] for path in PACKAGE.glob("*/**/*.py")}
    assert folders == set(ORDER)
    for place, folder in enumerate(ORDER):
        allowed = {*ORDER[: place + 1], "errors"}
        for path in (PACKAGE / folder).rglob("*.py"):
            above = {name for name in imported(path) if name.split(".")[1] not in allowed}
            assert not above, f"{path.relative_to(PACKAGE)} imports {', '.join(sorted(above))}"


def test_what_is_in_no_folder_imports_none() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "errors.py"}
    assert not any(imported(path) for path in PACKAGE.glob("*.py"))


def test_networks_and_readers_of_data_know_nothing_of_the_tasks() -> None:
    for folder in ("nets", "data"):
        for path in (PACKAGE / "tasks" / folder).rglob("*.py"):
            for name in imported(path):
                assert name.split(".")[2] in ("nets", "data", "task"), f"{path.name} imports {name}"


def test_a_command_is_registered_without_what_it_needs_to_run() -> None:
    code = (
        "import sys; from jorge import cli; cli._parser(None); "
        "heavy = {'optuna', 'matplotlib', 'plotly', 'rich', 'jinja2', 'numpy', 'scipy'} - before; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    code = "import sys, torch; before = set(sys.modules); " + code
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
