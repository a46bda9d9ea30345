"""Who may import whom, and what `import jorge` loads."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "jorge"
ALLOWED = {
    "roots": set(),
    "blocks": set(),
    "grafting": set(),
    "reference": set(),
    "transfer": set(),
    "methods": {"roots", "blocks"},
    "routing": {"blocks", "grafting", "methods"},
    "options": {"methods"},
    "stacks": {"blocks", "grafting", "methods", "routing"},
    "optimizer": {"methods", "options", "routing", "stacks", "transfer"},
    "__init__": {"optimizer"},
}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            found |= {f"{module}.{alias.name}" if module == "jorge" else module for alias in node.names}
    return found


def test_each_module_imports_only_what_it_may() -> None:
    top = {path.stem for path in PACKAGE.glob("*.py")} - {"cli", "__main__"}
    assert top == set(ALLOWED)
    for name, allowed in ALLOWED.items():
        mine = {i.split(".")[1] for i in imports(PACKAGE / f"{name}.py") if i.startswith("jorge.")}
        assert mine <= allowed, f"{name} imports {mine - allowed}"


def test_nothing_below_the_command_line_imports_the_laboratory() -> None:
    for path in PACKAGE.glob("*.py"):
        if path.stem != "cli":
            assert not any(i.startswith("jorge.lab") for i in imports(path)), path


def test_the_mathematics_imports_torch_alone() -> None:
    allowed = {"torch", "math", "typing", "dataclasses", "__future__", "collections"}
    for name in ("roots", "blocks", "grafting", "reference"):
        assert {i.split(".")[0] for i in imports(PACKAGE / f"{name}.py")} <= allowed


def test_importing_jorge_loads_nothing_beyond_torch() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import jorge; "
        "print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] not in ('jorge', 'difflib')))"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
