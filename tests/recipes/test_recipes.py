"""Each recipe end to end on a small data set in the true format: it learns, resumes to the bit, evaluates.

Those that need torchvision and pycocotools are skipped where they are missing: `make recipes` runs them.
"""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from jorge import Jorge
from recipes.loop import Result
from tests.recipes import data, tiny

ROOT = Path(__file__).parents[2]
VISION = all(importlib.util.find_spec(name) for name in ("torchvision", "pycocotools"))
#: Where each is run, and with what beside it.
CASES: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "gpt": (data.text, ("--batch-size", "8", "--lr", "0.01", "--warmup-steps", "3", "--amp", "float16")),
    "cifar10": (data.cifar10, ("--batch-size", "20", "--lr", "0.1", "--amp", "bfloat16", "--channels-last")),
    "imagenet": (
        data.image_folder,
        ("--batch-size", "8", "--lr", "0.01", "--crop-size", "32", "--resize-size", "36", "--channels-last"),
    ),
    "deeplab": (
        data.coco,
        ("--batch-size", "4", "--lr", "0.02", "--base-size", "64", "--crop-size", "64", "--amp", "bfloat16"),
    ),
    "mask_rcnn": (data.coco, ("--batch-size", "4", "--lr", "0.02", "--warmup-steps", "2", "--accumulate", "2")),
}
#: What each calls the figure that it is judged by.
SCORES = {"gpt": "val_loss", "cifar10": "accuracy", "imagenet": "top1", "deeplab": "mean_iou", "mask_rcnn": "mask_ap"}
# What torch says of a checkpoint in one process, and torchvision of its own, is theirs.
pytestmark = pytest.mark.filterwarnings("default")


def names(*of: str) -> list[Any]:
    needs = pytest.mark.skipif(not VISION, reason="needs torchvision and pycocotools: make recipes")
    marks = {name: [pytest.mark.slow] + [needs] * (name not in ("gpt", "cifar10")) for name in of}
    return [pytest.param(name, marks=marks[name]) for name in of]


def arguments(name: str, folder: Path, out: str, *more: str, steps: int = 30) -> list[str]:
    make, settings = CASES[name]
    where = folder / make.__name__
    if not where.exists():
        make(where)
    log = ("--log-every", "5", "--save-every", "100", "--evaluate-every", "100")
    return [str(where), "--out", str(folder / out), "--steps", str(steps), *settings, *log, *more]


def run(name: str, folder: Path, out: str, *more: str, steps: int = 30) -> Result:
    return tiny.run(name, arguments(name, folder, out, *more, steps=steps))


def nothing_is_loaded(self: Jorge, state_dict: dict[str, Any]) -> None:
    """In place of `load_state_dict`: the optimizer starts afresh."""


@pytest.mark.parametrize("name", names(*CASES))
def test_it_learns_and_resumes_to_the_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(name, tmp_path, "whole")
    assert whole.losses[-1] < 0.8 * whole.losses[0]
    assert [step for step, _ in whole.scores] == [30]
    assert SCORES[name] in whole.scores[0][1]
    run(name, tmp_path, "halves", "--stop-at", "17")
    shutil.copytree(tmp_path / "halves", tmp_path / "cold")
    resumed = run(name, tmp_path, "halves", "--resume", "--workers", "1")
    assert torch.equal(tiny.whole(whole.model), tiny.whole(resumed.model))
    assert (resumed.losses[-1], resumed.scores) == (whole.losses[-1], whole.scores)
    assert (tmp_path / "halves" / "latest").read_text() == "step-30"
    assert [path.name for path in (tmp_path / "halves").glob("step-*")] == ["step-30"]
    monkeypatch.setattr(Jorge, "load_state_dict", nothing_is_loaded)
    cold = run(name, tmp_path, "cold", "--resume")
    assert not torch.equal(tiny.whole(whole.model), tiny.whole(cold.model))


@pytest.mark.parametrize("name", names(*CASES))
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "shampoo"])
def test_it_trains_with_every_optimizer(name: str, optimizer: str, tmp_path: Path) -> None:
    if name == "gpt" and optimizer == "sgd":
        with pytest.raises(SystemExit):
            run(name, tmp_path, "out", "--optimizer", optimizer, steps=1)
        return
    found = run(name, tmp_path, "out", "--optimizer", optimizer, "--log-every", "1", steps=2)
    assert len(found.losses) == 2
    assert all(loss > 0 for loss in found.losses)


def in_two_processes(name: str, argv: Sequence[str]) -> dict[str, Any]:
    """What rank 0 of two says at the end."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("-m", "tests.recipes.tiny", name, *argv),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    said = re.search(r"^RESULT (.*)$", done.stdout, re.MULTILINE)
    assert said, done.stdout
    result: dict[str, Any] = json.loads(said.group(1))
    return result


@pytest.mark.slow
def test_two_replicas_and_then_two_shards_are_as_one_process(tmp_path: Path) -> None:
    """DDP, and FSDP2 from its checkpoint: the order of the data is one process's, and so are the weights."""
    several = ("--batch-size", "8", "--lr", "0.01", "--warmup-steps", "3", "--steps", "8", "--evaluate-every", "4")
    where = str(data.text(tmp_path / "text"))
    one = tiny.run("gpt", [where, *several, "--out", str(tmp_path / "one")])
    two = [where, *several, "--out", str(tmp_path / "two")]
    replicas = in_two_processes("gpt", [*two, "--stop-at", "4"])
    shards = in_two_processes("gpt", [*two, "--resume", "--strategy", "fsdp"])
    assert (replicas["sharded"], shards["sharded"]) == (False, True)
    for found, (step, scores) in zip((replicas, shards), one.scores, strict=True):
        assert found["scores"] == [[step, {"val_loss": pytest.approx(scores["val_loss"], rel=1e-4)}]]
    assert shards["sum"] == pytest.approx(tiny.whole(one.model).double().sum().item(), rel=1e-4)


@pytest.mark.parametrize("name", names("imagenet", "deeplab", "mask_rcnn"))
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_it_runs_in_two_processes(name: str, strategy: str, tmp_path: Path) -> None:
    log, steps = ("10", 30) if name == "imagenet" else ("2", 6)
    settings = arguments(name, tmp_path, "out", "--strategy", strategy, "--log-every", log, steps=steps)
    found = in_two_processes(name, settings)
    assert found["sharded"] == (strategy == "fsdp")
    assert found["losses"][-1] < found["losses"][0]
    assert SCORES[name] in found["scores"][0][1]


def test_it_ends_where_the_target_is_reached(tmp_path: Path) -> None:
    found = run("gpt", tmp_path, "out", "--target", "2.5", "--evaluate-every", "2", "--save-every", "2")
    assert found.reached == found.scores[-1][0] < 30
    assert found.scores[-1][1]["val_loss"] <= 2.5 < found.scores[-2][1]["val_loss"]
    assert (tmp_path / "out" / "latest").read_text() == f"step-{found.reached}"


def test_curves_are_written(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run("gpt", tmp_path, "out", "--tensorboard", "--log-every", "1", steps=3)
    events = EventAccumulator(str(tmp_path / "out")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3]
    assert [event.step for event in events.Scalars("val_loss")] == [3]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--accumulate", "3"], "--batch-size 8 is no multiple of 1 processes × 3 parts"),
        (["--strategy", "fsdp", "--amp", "float16"], "take bfloat16"),
        (["--optimizer", "adamw", "--options", "interval=2"], "--options are Jorge's"),
        (["--batch-size", "4096"], "examples do not make a batch of 4096"),
    ],
)
def test_what_cannot_be_is_said(wrong: list[str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=sentence):
        run("gpt", tmp_path, "out", *wrong, steps=1)
