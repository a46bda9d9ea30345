"""A user's own task, in each of the forms that docs/guide/own-tasks.md promises."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from jorge_lab.tasks import mnist, own
from jorge_lab.tasks.own import TaskError, from_parts
from jorge_lab.tasks.task import Task

X, Y = torch.randn(64, 5), torch.arange(64) % 3
PAIR = ((X, Y), (X[:10], Y[:10]))


def network() -> nn.Module:
    return nn.Linear(5, 3)


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def accuracy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return torch.eq(model(batch[0]).argmax(1), batch[1]).float().mean()


def as_tuple() -> Any:
    return network(), PAIR, loss, accuracy


def as_mapping(size: str) -> Any:
    return {"model": network, "data": PAIR, "loss": loss, "steps": {"smoke": 3, "small": 30, "full": 300}[size]}


def as_task() -> Task:
    return mnist.task("smoke")


def broken() -> Any:
    raise RuntimeError("no such file")


def unknown() -> Any:
    return {"model": network, "data": PAIR, "loss": loss, "epochs": 3}


def lacking() -> Any:
    return {"model": network}


SHARED = network()


def shared() -> Any:
    return SHARED, PAIR, loss, accuracy


def shared_by_a_function() -> Any:
    return {"model": lambda: SHARED, "data": PAIR, "loss": loss}


def drawn() -> Any:
    inputs = torch.randn(20, 5) + float(np.random.rand()) + random.random()
    return {"model": network, "data": ((inputs, Y[:20]), (inputs, Y[:20])), "loss": loss}


def wrong_baseline() -> Any:
    return {"model": network, "data": PAIR, "loss": loss, "baseline": "adam"}


HERE = __name__


def test_data_that_is_drawn_is_the_same_for_all_and_nothing_else_is_touched() -> None:
    states = torch.get_rng_state(), random.getstate()
    first = own.load(f"{HERE}:drawn", "small").load().train[0]
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before = torch.get_rng_state(), random.getstate()
    again = own.load(f"{HERE}:drawn", "small").load().train[0]
    assert torch.equal(first, again)
    assert random.getstate() == before[1]
    torch.set_rng_state(states[0])
    random.setstate(states[1])


def test_a_tuple_of_four() -> None:
    task = own.load(f"{HERE}:as_tuple", "small")
    assert (task.name, task.batch_size, task.metric) == (f"{HERE}:as_tuple", 64, ("accuracy", "higher"))
    torch.manual_seed(3)
    first = task.model()
    torch.manual_seed(3)
    again, other = task.model(), task.model()
    weights = [m.state_dict()["weight"] for m in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2]), "a seed draws its own weights"
    model = task.model()
    assert task.evaluate(model, task.load()) == pytest.approx(float(accuracy(model, PAIR[1])))


def test_a_mapping_that_grows_with_the_size() -> None:
    assert [own.load(f"{HERE}:as_mapping", size).steps for size in ("smoke", "small", "full")] == [3, 30, 300]
    task = own.load(f"{HERE}:as_mapping", "smoke")
    assert task.metric == ("validation loss", "lower")
    assert task.recipe.baseline == "adamw"


def test_a_whole_task() -> None:
    assert own.load(f"{HERE}:as_task", "smoke").name == "mnist"


def test_data_may_be_tensors_a_dataset_or_a_loader() -> None:
    dataset = TensorDataset(X, Y)
    forms: list[tuple[Any, Any]] = [
        ((X, Y), (X, Y)),
        ([X.numpy(), Y.numpy()], (X, Y)),
        (dataset, dataset),
        ([(x, int(y)) for x, y in zip(X, Y, strict=True)], dataset),
        (DataLoader(dataset, batch_size=7), DataLoader(dataset)),
    ]
    for data in forms:
        task = from_parts("t", "small", model=network, data=data, loss=loss)
        found = task.load()
        assert torch.equal(found.train[0], X)
        assert torch.equal(found.train[1], Y)
        assert task.batch_size == (7 if isinstance(data[0], DataLoader) else 64)


class Named(list[dict[str, Any]]):
    """As datasets of other packages are: with a length and an index, and no dataset of torch's."""


def padded(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    return {name: torch.stack([torch.as_tensor(e[name]) for e in examples]) for name in ("x", "y")}


def test_where_examples_are_mappings_so_are_batches() -> None:
    def objective(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["y"])

    examples = Named({"x": x, "y": int(y), "more": "text"} for x, y in zip(X, Y, strict=True))
    plain = [{"x": e["x"], "y": e["y"]} for e in examples]
    columns = {"x": X, "y": Y}
    loader: DataLoader[Any] = DataLoader(examples, batch_size=7, collate_fn=padded)  # type: ignore[arg-type]
    for train in (columns, plain, loader):
        task = from_parts("t", "small", model=network, data=(train, columns), loss=objective)
        model, data = network(), task.load()
        assert torch.equal(data.train[0], X)
        assert torch.equal(data.train[1], Y)
        assert torch.equal(task.loss(model, data.train), loss(model, PAIR[0]))
        assert task.evaluate(model, data) == pytest.approx(float(loss(model, PAIR[0]).detach()), rel=1e-5)
    with pytest.raises(TaskError, match="an example must be a tensor"):
        from_parts("t", "small", model=network, data=(examples, columns), loss=objective)  # text is none


def test_a_function_that_takes_a_model_by_another_name_is_told_so() -> None:
    task = from_parts("t", "small", model=network, data=PAIR, loss=lambda net, batch: net(batch[0]).sum())
    with pytest.raises(TaskError, match="first parameter must be called `model`"):
        task.loss(network(), PAIR[0])


def test_a_criterion_and_metrics() -> None:
    model, batch = network(), PAIR[1]
    for criterion in (nn.CrossEntropyLoss(), F.cross_entropy):
        task = from_parts("t", "small", model=network, data=PAIR, loss=criterion, sgd={"lr": 0.3})
        assert torch.equal(task.loss(model, batch), loss(model, batch))
        assert (task.recipe.baseline, task.recipe.sgd["lr"], task.recipe.sgd["momentum"]) == ("sgd", 0.3, 0.9)
        assert task.recipe.transfer == "sgd"
    both = from_parts("t", "small", model=network, data=PAIR, loss=loss, baseline="sgd", sgd={"lr": 1}, adamw={})
    assert (both.recipe.baseline, both.recipe.transfer) == ("sgd", "adamw")

    def error(output: Tensor, target: Tensor) -> float:
        return float((output.argmax(1) != target).float().mean())

    task = from_parts("t", "small", model=network, data=PAIR, loss=loss, metric=("error", error, "lower"))
    assert task.metric == ("error", "lower")
    assert task.evaluate(model, task.load()) == pytest.approx(1 - float(accuracy(model, batch)))


class Endless(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        yield torch.zeros(2)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere.at_all:task", "cannot import the task"),
        (f"{HERE}:missing", "cannot import the task"),
        (f"{HERE}:PAIR", "write module:function"),
        (f"{HERE}:broken", "raised RuntimeError: no such file"),
        (f"{HERE}:unknown", "unknown entries epochs"),
        (f"{HERE}:lacking", "lacks data, loss"),
        (f"{HERE}:network", "must return a mapping or a tuple"),
        (f"{HERE}:shared", "the same network each time"),
        (f"{HERE}:shared_by_a_function", "the same network each time"),
        (f"{HERE}:wrong_baseline", "baseline must be 'sgd' or 'adamw'"),
    ],
)
def test_what_is_wrong_is_said(spec: str, says: str) -> None:
    with pytest.raises(TaskError, match=says):
        own.load(spec, "small")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"data": PAIR[0][0]}, "must be a pair"),
        ({"data": ((X, Y[:3]), PAIR[1])}, "64, 3 examples"),
        ({"data": ((X, Y[0]), PAIR[1])}, "without dims holds no examples"),
        ({"data": ([(X[0], 1), (X[0, :2], 2)], PAIR[1])}, "cannot be put into one batch"),
        ({"data": ((np.array(["a", "b"]),), PAIR[1])}, "numpy.str_"),
        ({"data": ([], PAIR[1])}, "a list without examples"),
        (
            {"data": ({"x": X, "y": Y}, PAIR[1])},
            "training examples have the entries x, y, validation examples no names",
        ),
        ({"data": ({"x": X}, {"x": X}), "loss": nn.CrossEntropyLoss()}, "which a criterion"),
        ({"data": (Endless(), PAIR[1])}, "dataset with a length"),
        ({"metric": 3}, "metric must be"),
        ({"data": ((X, Y), (X[:0], Y[:0]))}, "0 validation examples"),
    ],
)
def test_what_is_wrong_with_the_parts_is_said(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(TaskError, match=says):
        from_parts("t", "small", **{"model": network, "data": PAIR, "loss": loss, **changed})


def _compare_digits(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "jorge", "compare", "digits:task", "--optimizers", "jorge,sgd", "--steps", "60"]
    return subprocess.run(
        [*command, *arguments, "--out", "out"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [("nn.Linear(64, 128), nn.ReLU()", "nn.Linear(64, 128), nn.Tanh()"), ("images / 16", "images / 15"), ("", "")],
)
def test_what_has_changed_is_trained_again(tmp_path: Path, old: str, new: str) -> None:
    page = (Path(__file__).parents[3] / "docs" / "guide" / "own-tasks.md").read_text()
    code = page.split("```python\n# digits.py\n")[1].split("```")[0]
    (tmp_path / "digits.py").write_text(code)
    assert _compare_digits(tmp_path).returncode == 0
    (tmp_path / "digits.py").write_text(code.replace(old, new) + "\n# a comment\n")
    again = _compare_digits(tmp_path)
    lines = (tmp_path / "out" / "runs.jsonl").read_text().splitlines()
    if old == new:
        assert "2 of 2 runs" in again.stdout
        assert len(lines) == 2
    else:
        assert "another network, loss or data" in " ".join(again.stdout.split())
        assert len(lines) == 4
        assert len({json.loads(line)["losses"][0] for line in lines}) == 2


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_the_example_of_the_docs_runs_through_the_tool(tmp_path: Path, workers: int) -> None:
    page = (Path(__file__).parents[3] / "docs" / "guide" / "own-tasks.md").read_text()
    code = page.split("```python\n# digits.py\n")[1].split("```")[0]
    (tmp_path / "digits.py").write_text(code)
    result = _compare_digits(tmp_path, "--workers", str(workers))
    assert result.returncode == 0, result.stderr
    found = [json.loads(line) for line in (tmp_path / "out" / "runs.jsonl").read_text().splitlines()]
    assert {r["optimizer"] for r in found} == {"jorge", "sgd"}
    assert all(r["losses"][-1] < 0.5 * r["losses"][0] for r in found)
    assert "digits:task" in (tmp_path / "out" / "report.html").read_text()
