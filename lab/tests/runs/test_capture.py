"""`--capture`: without a GPU, that the whole model is handed over before it trains, and that the record says so."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from jorge_lab.contenders.finding import find_contender
from jorge_lab.runs.run import train
from jorge_lab.tasks.finding import find_task


@pytest.mark.parametrize("name", ["mnist", "shakespeare"])
def test_the_model_is_captured_on_a_batch_of_the_task(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    handed: list[tuple[int, ...]] = []

    def capture(model: nn.Module, inputs: tuple[Tensor, ...]) -> nn.Module:
        assert model.training
        model(*inputs)
        handed.append(tuple(inputs[0].shape))
        return model

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", capture)
    task = find_task(name, "smoke")
    run = partial(train, task, find_contender("sgd"), 0, 2, task.load(), lambda *_: None)
    plain, captured = run(), run(capture=True)
    assert [shape[0] for shape in handed] == [task.batch_size]
    assert captured["captured"]
    assert "captured" not in plain
    assert captured["losses"] == plain["losses"]
