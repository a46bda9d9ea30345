"""The commands that the guide shows are run, in their order, at the smallest size that they can be given.

What they name is made first: the files that a page shows, packages of the reader's, and stand-ins for torchvision and
transformers, of which a command needs no more than a network.
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

from tests.test_docs import DOCS, commands

pytestmark = pytest.mark.slow

#: What is added to a command, or takes the place of its own.
SMALL = {
    "compare": "--size smoke --steps 6 --seeds 1 --workers 1 --device cpu",
    "tune": "--size smoke --trials 1 --workers 1 --device cpu",
    "ablate": "--size smoke --steps 6 --seeds 1 --workers 1",
}
#: By page: the packages that it cannot do without.
PAGES = {"cost.md": (), "testing.md": (), "own-tasks.md": ("sklearn", "optuna"), "laboratory.md": ("mlxtend", "optuna")}
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
    "path/to/model/config.json": json.dumps({"model_type": "gpt2", "n_layer": 1, "n_embd": 8}),
}


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


def small(line: str) -> list[str]:
    """A command at its smallest: on one task of the laboratory, and with what :data:`SMALL` says."""
    words = shlex.split(line, comments=True)
    if words[0] == "python":
        return words[1:]
    tasks = {"all": ["mnist"], "shakespeare": [], "fashion": []}
    if words[1] in SMALL:
        words = [each for word in words for each in tasks.get(word, [word])]
    if words[1] == "tune" and "--tuned" not in words:
        words += ["--tuned", "tuned.json"]  # not into the file that comes with the laboratory
    return ["-m", *words, *SMALL.get(words[1], "").split()]


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    for package in PAGES[page]:
        pytest.importorskip(package)
    if page in ("own-tasks.md", "laboratory.md") and importlib.util.find_spec("jorge_lab") is None:
        pytest.skip("the laboratory is a distribution of its own")
    prepare(tmp_path)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "PYTHONPATH": os.pathsep.join(paths)}
    lines = [line for name, line in commands() if name == page]
    assert lines, "the page has no command"
    for line in lines:
        result = subprocess.run(
            [sys.executable, *small(line)],
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


def test_every_page_of_the_guide_with_commands_is_run() -> None:
    guide = {path.name for path in (DOCS / "guide").glob("*.md")}
    assert {page for page, _ in commands() if page in guide} == set(PAGES)
