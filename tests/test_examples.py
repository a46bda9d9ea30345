"""The examples: each learns, resumes to the bit, and would not without the optimizer's state.

Those of a framework run where it is installed: `make examples`. AlgoPerf's are in `test_algoperf.py`.
"""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from jorge import Jorge
from tests.frameworks import declared, framework

ROOT = Path(__file__).parents[1]
#: What each example needs beside torch.
NEEDS: dict[str, tuple[str, ...]] = {
    "torch_amp": (),
    "torch_averages": (),
    "hf_trainer": ("transformers", "accelerate"),
    "hf_trainer_optimizers": ("transformers", "accelerate"),
    "hf_accelerate": ("transformers", "accelerate"),
    "hf_peft": ("transformers", "accelerate", "peft"),
    "hf_trl": ("transformers", "accelerate", "trl"),
    "lightning_module": ("lightning",),
    "lightning_fabric": ("lightning",),
    "lightning_two_optimizers": ("lightning",),
    "timm_factory": ("timm",),
    "hydra_config": ("hydra", "omegaconf"),
    "torchtitan_container": ("torchtitan.components.optimizer",),
    "deepspeed_client": ("deepspeed",),
}
EXAMPLES = [pytest.param(name, marks=() if name == "torch_averages" else pytest.mark.slow) for name in NEEDS]
# What frameworks and torch's own compiler warn of is theirs.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(autouse=True)
def _each_starts_afresh() -> Iterator[None]:
    """Accelerate's precision is one of the process, as are DeepSpeed's group and environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if "accelerate" in sys.modules:
        sys.modules["accelerate"].state.AcceleratorState._reset_state(reset_partial_state=True)
        sys.modules["accelerate"].state.GradientState._reset_state()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def example(name: str) -> ModuleType:
    for package in NEEDS[name]:
        framework(package)
    return importlib.import_module(f"examples.{name}")


def nothing_is_loaded(self: Jorge, state_dict: dict[str, Any]) -> None:
    """In place of `load_state_dict`: the optimizer starts afresh."""


def as_one(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("name", EXAMPLES)
def test_it_learns_and_resumes_to_the_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = example(name)
    losses, whole = module.train(tmp_path)
    assert losses[-1] < 0.9 * losses[0]
    found, resumed = module.train(tmp_path, resume=True)
    assert found[-1] == losses[-1]
    assert torch.equal(as_one(whole), as_one(resumed))
    monkeypatch.setattr(Jorge, "load_state_dict", nothing_is_loaded)
    _, cold = module.train(tmp_path, resume=True)
    assert not torch.equal(as_one(whole), as_one(cold))


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_it_is_a_script(name: str) -> None:
    example(name)
    script = [f"examples/{name}.py"]
    if "timm" in NEEDS[name] and declared:  # its torchvision does not load by itself
        code = "import runpy, tests.frameworks as f; f.framework('timm'); runpy.run_path({!r}, run_name='__main__')"
        script = ["-c", code.format(*script)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *script],
        cwd=ROOT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"^loss (\S+) → (\S+), resumed to (\S+)$", done.stdout, re.MULTILINE)
    assert said, done.stdout
    first, last, again = said.groups()
    assert float(last) < float(first)
    assert again == last


def test_every_example_is_tested_and_short() -> None:
    files = sorted((ROOT / "examples").glob("*.py"))
    assert {file.stem for file in files} == set(NEEDS)
    for file in (ROOT / "examples").rglob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 60, file


def test_every_example_is_in_the_table() -> None:
    page = (ROOT / "docs" / "guide" / "frameworks.md").read_text(encoding="utf-8")
    for file in (ROOT / "examples").rglob("*.py"):
        assert f"(../../{file.relative_to(ROOT)})" in page, file
