"""The commands that the documentation shows are run, in their order, at the smallest size that they can be given.

What they name is made first: the files that a page shows, packages of the reader's, and stand-ins for torchvision and
transformers, of which a command needs no more than a network. The notebook's take hours on its tasks, and one of them a
GPU: they are run on one small task, `tiny:task`, and without `--capture`. Studies and benchmarks that pages name by
`python -m` alone are run by the laboratory's tests.
"""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_docs import DOCS, ROOT, commands

pytestmark = pytest.mark.slow

#: What is added to a command, or takes the place of its own.
SMALL = {
    "compare": "--size smoke --steps 6 --seeds 1 --workers 1 --device cpu",
    "tune": "--size smoke --trials 1 --workers 1 --device cpu",
    "ablate": "--size smoke --steps 6 --seeds 1 --workers 1",
    "jorge_lab.studies.hypotheses": "--size smoke --workers 1",
    "jorge_lab.tuning.recipes": "--quick --threads 1",
}
#: By page: the packages that it cannot do without.
PAGES: dict[str, tuple[str, ...]] = {
    "cost.md": (),
    "should-i-use-it.md": (),
    "testing.md": (),
    "own-tasks.md": ("sklearn", "optuna"),
    "laboratory.md": ("mlxtend", "optuna"),
    "comparison.md": ("mlxtend", "optuna", "heavyball"),
    "defaults.md": ("mlxtend",),
    "held-out.md": ("optuna", "heavyball"),
    "hypotheses.md": ("mlxtend",),
}
#: Of the laboratory's tasks, what stands for them in the notebook.
TASKS = ["mnist", "mnist1d-mlp", "python", "vit", "autoencoder", "shakespeare", "fashion", "all"]
NETWORK = "from torch import nn\ndef {}:\n    return nn.Sequential({})\n"
FILES = {
    "torchvision/models.py": NETWORK.format("resnet50()", "nn.Conv2d(3, 4, 3, 32), nn.Flatten(), nn.Linear(196, 10)"),
    "my_package/models.py": NETWORK.format("build(width)", "nn.Linear(8, width), nn.Linear(width, 2)"),
    "mypackage/optimizers.py": "import torch\nclass MyOptimizer(torch.optim.AdamW):\n    pass\n",
    "transformers.py": """
from torch import nn
class GPT2Config:
    model_type = "gpt2"
    def __init__(self, n_layer, n_embd, n_head=1):
        assert n_embd % n_head == 0
        self.n_layer, self.n_embd = n_layer, n_embd
    def to_dict(self):
        return vars(self)
class AutoConfig:
    @staticmethod
    def for_model(model_type, **data):
        return GPT2Config(**data)
class AutoModel:
    @staticmethod
    def from_config(config):
        return nn.Sequential(nn.Embedding(9, config.n_embd), nn.Linear(config.n_embd, 9))
""",
    "tiny.py": """
import torch
from torch import nn
x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
def task():
    data = (x[:150], x[:150, :2]), (x[150:], x[150:, :2])
    return {"model": lambda: nn.Linear(6, 2), "data": data, "loss": nn.MSELoss(), "steps": 8}
""",
    "path/to/model/config.json": json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 8}),
}


NOTEBOOK = {path.name for path in (DOCS / "notebook").glob("*.md")}


def prepare(folder: Path) -> None:
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    header = json.dumps({"w": {"dtype": "F32", "shape": [4, 3], "data_offsets": [0, 48]}}).encode()
    (folder / "weights.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(48))
    page = (DOCS / "guide" / "own-tasks.md").read_text(encoding="utf-8")
    for name, text in re.findall(r"```python\n# (\w+\.py)\n(.*?)```", page, re.DOTALL):
        (folder / name).write_text(text, encoding="utf-8")


def small(page: str, line: str) -> list[str]:
    """A command at its smallest: on one task of the laboratory, and with what :data:`SMALL` says."""
    line = line.replace("jorge ", "python -m jorge ", 1) if line.startswith("jorge ") else line
    line = re.sub(r"\$TASKS|\$\(.*?\)", "tiny:task", line)
    words = shlex.split(line, comments=True)
    command = words[3] if words[2] == "jorge" else words[2]
    if command in SMALL:
        mine = {"all": ["mnist"], "shakespeare": [], "fashion": []}
        if page in NOTEBOOK:
            mine = {name: ["tiny:task"] for name in TASKS} | {"--capture": []}
            if command == "ablate":  # the question; all of them are hours, and each has a test of its own
                words[4] = "interval"
            if command.startswith("jorge_lab.studies"):  # of the laboratory's own, and the records are of other tasks
                words = [*words[:3], "mnist1d-mlp", "--hypotheses", "as it is", "--seeds", "1"]
                mine = {}
        start = words.index(command) + 1 + (command == "ablate")
        mapped = [word for each in words[start:] for word in mine.get(each, [each])]
        words = words[:start] + [each for i, each in enumerate(mapped) if each != "tiny:task" or each not in mapped[:i]]
    if (command == "tune" or "tuned" in words) and "--tuned" not in words:
        words += ["--tuned", "tuned.json"]  # not into the file that comes with the laboratory
    return [*words[1:], *SMALL.get(command, "").split()]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    for package in PAGES[page]:
        pytest.importorskip(package)
    if page not in ("cost.md", "testing.md") and importlib.util.find_spec("jorge_lab") is None:
        pytest.skip("the laboratory is a distribution of its own")
    prepare(tmp_path)
    if (ROOT / "lab" / "records").exists():
        (tmp_path / "lab").symlink_to(ROOT / "lab")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(paths)}
    lines = [line for name, line in commands() if name == page]
    assert lines, "the page has no command"
    for line in lines:
        result = subprocess.run(
            [sys.executable, *small(page, line)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, f"{line}\n{result.stdout[-2000:]}\n{result.stderr[-3000:]}"
        assert "Traceback" not in result.stderr, line
        assert result.stdout.strip(), line


def test_every_page_with_commands_is_run() -> None:
    mine = {page for page, line in commands() if "-m recipes." not in line}  # those are run by `tests/recipes`
    assert mine == set(PAGES)


def test_every_study_and_benchmark_that_a_page_names_has_a_test_that_runs_it() -> None:
    pages = "".join(path.read_text(encoding="utf-8") for path in DOCS.rglob("*.md"))
    named = {name.rpartition(".") for name in re.findall(r"`python -m (jorge_lab[\w.]+)", pages)}
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "lab" / "tests").rglob("test_*.py"))
    assert len(named) > 10
    for package, _, module in named:
        assert re.search(rf"from {package} import [^\n]*\b{module}\b", tests), f"{package}.{module}"
        assert re.search(rf"\b{module}\.\w", tests), f"{package}.{module}"
