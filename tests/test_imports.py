"""Who may import whom, and what `import jorge` loads."""

import ast
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "jorge"
ALLOWED = {
    "options": set(),
    "reference": set(),
    "blocks": {"options"},
    "grafting": {"options"},
    "transfer": {"options"},
    "trace": set(),
    "methods": {"blocks", "options", "trace"},
    "routing": {"blocks", "grafting", "methods", "options"},
    "plan": {"blocks", "options", "routing"},
    "checks": {"methods", "options"},
    "validation": {"blocks", "exchange", "naming", "options", "routing"},
    "checkpoints": {"checks", "exchange", "options", "routing", "validation"},
    "skips": {"options", "routing", "validation"},
    "naming": {"options"},
    "shards": {"blocks"},
    "arrange": {"blocks", "methods", "options", "routing", "shards"},
    "variance": {"grafting"},
    "parameters": {"arrange", "grafting", "options"},
    "stacking": {"arrange", "blocks", "methods", "options", "trace"},
    "schatten": {"arrange", "exchange", "methods", "options", "stacking"},
    "schedule": {"arrange", "methods"},
    "exchange": {"arrange", "blocks", "grafting", "methods", "naming", "options", "routing", "schedule", "shards"},
    "scalars": {"options"},
    "compiling": {"methods", "options", "scalars"},
    "graphs": {"options", "scalars"},
    "replaying": {"graphs", "inputs", "options", "parameters", "schedule", "step", "store", "trace"},
    "allocation": {"arrange", "methods", "options", "routing"},
    "store": {
        "allocation",
        "arrange",
        "compiling",
        "exchange",
        "grafting",
        "graphs",
        "methods",
        "options",
        "routing",
        "schatten",
        "shards",
        "validation",
    },
    "inputs": {"arrange", "compiling", "exchange", "methods", "options", "schedule", "store", "trace"},
    "step": {
        *(
            "allocation",
            "arrange",
            "compiling",
            "exchange",
            "grafting",
            "inputs",
            "methods",
            "options",
            "parameters",
            "routing",
            "schatten",
            "schedule",
            "stacking",
            "store",
            "trace",
            "variance",
        ),
    },
    "spectrum": set(),
    "rehearsal": {
        *(
            "allocation",
            "arrange",
            "exchange",
            "grafting",
            "inputs",
            "methods",
            "options",
            "schedule",
            "spectrum",
            "stacking",
            "step",
            "store",
            "trace",
        ),
    },
    "diagnostics": {"options", "rehearsal", "routing", "schedule", "store", "validation"},
    "saving": {"checkpoints", "exchange", "options", "skips", "store", "validation"},
    "optimizer": {
        "checks",
        "diagnostics",
        "exchange",
        "options",
        "plan",
        "replaying",
        "routing",
        "saving",
        "skips",
        "step",
        "store",
        "trace",
        "transfer",
        "validation",
    },
    "testing": set(),
    "cost": {
        "arrange",
        "blocks",
        "checks",
        "exchange",
        "methods",
        "optimizer",
        "options",
        "plan",
        "routing",
        "schatten",
        "shards",
        "validation",
    },
    "groups": {"blocks", "exchange"},
    "errors": set(),
    "dryrun": {"exchange"},
    "findings": {"diagnostics", "exchange", "groups", "optimizer", "options", "routing", "skips", "validation"},
    "checkup": {"diagnostics", "dryrun", "exchange", "findings", "groups", "naming", "optimizer", "validation"},
    "integrations": {"groups", "optimizer"},
    "__init__": {"checkup", "cost", "groups", "optimizer", "testing"},
}


def room(path: Path) -> str:
    """The module, or the package of the top level that it is part of."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
    top = {room(path) for path in PACKAGE.rglob("*.py")} - {"cli", "__main__"}
    assert top == set(ALLOWED)
    for path in PACKAGE.rglob("*.py"):
        if room(path) in top:
            mine = {i.split(".")[1] for i in imports(path) if i.startswith("jorge.")} - {room(path)}
            assert mine <= ALLOWED[room(path)], f"{path} imports {mine - ALLOWED[room(path)]}"


def test_nothing_imports_the_laboratory() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not any(i.split(".")[0] == "jorge_lab" for i in imports(path)), path


def test_the_mathematics_imports_torch_alone() -> None:
    allowed = {"torch", "math", "typing", "dataclasses", "__future__", "collections", "contextlib", "functools", "abc"}
    paths = [PACKAGE / f"{name}.py" for name in ("blocks", "grafting", "reference")]
    paths += (PACKAGE / "methods").glob("*.py")
    assert len(paths) > 5
    for path in paths:
        assert {i.split(".")[0] for i in imports(path) if not i.startswith("jorge.")} <= allowed


def test_importing_jorge_loads_nothing_beyond_torch() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import jorge; "
        "print(sorted(m for m in set(sys.modules) - before if m.split('.')[0] not in ('jorge', 'difflib')))"
    )
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
