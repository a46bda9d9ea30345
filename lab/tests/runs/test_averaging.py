"""Runs that end with an average of their weights, whichever the optimizer is."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from jorge_lab.contenders import CONTENDERS
from jorge_lab.contenders.contender import Average
from jorge_lab.contenders.finding import find_contender
from jorge_lab.errors import UsageError
from jorge_lab.runs.averaging import Averaged
from jorge_lab.runs.checkpoints import Checkpoints
from jorge_lab.runs.run import train
from jorge_lab.statistics.reaching import smooth
from jorge_lab.statistics.summary import summarize
from jorge_lab.tasks import TASKS
from lab.tests.tiny import Images, Tokens, tiny


class Normalised(Images):
    """With running statistics and a count among its buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.statistics = nn.BatchNorm1d(3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """As the other, through a norm that changes nothing but its buffers."""
        self.statistics(torch.randn(4, 3))
        return super().forward(images)


def weight(averaged: Averaged) -> float:
    """Of a linear layer with one."""
    return next(averaged.model.module.parameters()).item()


def test_a_tail_is_the_mean_of_the_last_weights_and_an_ema_forgets() -> None:
    model = nn.Linear(1, 1, bias=False)
    tail, ema = (Averaged(model, Average(*which), 10) for which in (("tail", 0.3), ("ema", 0.5)))
    for step in range(1, 11):
        model.weight.data.fill_(float(step))
        for each in (tail, ema):
            each.take(model, step)
    assert weight(tail) == pytest.approx(9.0)  # of 8, 9 and 10
    expected = 1.0
    for step in range(2, 11):
        expected = 0.5 * (expected + step)
    assert weight(ema) == pytest.approx(expected)
    short = Averaged(model, Average("tail", 0.01), 10)
    short.take(model, 10)
    assert weight(short) == 10.0


@pytest.mark.parametrize("kind", ["tail=0.3", "ema=0.9"])
@pytest.mark.parametrize("optimizer", ["jorge", "sgd", "muon"])
def test_the_loss_at_the_end_is_that_of_the_average_and_training_is_as_without(optimizer: str, kind: str) -> None:
    task = tiny(Normalised, steps=40)
    plain = train(task, CONTENDERS[optimizer], 0, 40, task.load(), lambda *_: None)
    record = train(task, find_contender(f"{optimizer}:{kind}"), 0, 40, task.load(), lambda *_: None)
    assert record["losses"] == plain["losses"]
    assert record["settings"] == plain["settings"]
    assert "averaged" not in plain
    last = smooth(plain["losses"], 40)[-1]
    assert record["averaged"]["loss"] != pytest.approx(last, rel=1e-6)
    assert record["averaged"]["loss"] < record["losses"][0]
    ours, theirs = summarize([plain, record])
    assert ours.final_loss == pytest.approx(last)
    assert (theirs.final_loss, theirs.metric) == (record["averaged"]["loss"], record["averaged"]["metric"])
    assert theirs.label == f"{CONTENDERS[optimizer].label}, {kind}"


def test_an_average_of_one_step_is_the_last_weights() -> None:
    task = TASKS["mnist1d-mlp"]("smoke")
    contender = replace(CONTENDERS["adamw"], average=Average("tail", 1e-6))
    record = train(task, contender, 0, task.steps, task.load(), lambda *_: None)
    assert record["averaged"]["metric"] == record["evaluations"][-1][1]


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    task, contender = tiny(Tokens, steps=30), find_contender("jorge:ema=0.9")
    whole = train(task, contender, 0, 30, task.load(), lambda *_: None)

    def stop(step: int, *_: object) -> None:
        if step == 17:
            raise KeyboardInterrupt

    checkpoints = Checkpoints(tmp_path, 1e-9)
    with pytest.raises(KeyboardInterrupt):
        train(task, contender, 0, 30, task.load(), stop, checkpoints=checkpoints)
    resumed = train(task, contender, 0, 30, task.load(), lambda *_: None, checkpoints=checkpoints)
    assert resumed["averaged"] == whole["averaged"]


@pytest.mark.parametrize("name", ["sgd:tail=0", "sgd:tail=1", "sgd:ema=much", "jorge:tail=0.2:ema=0.9"])
def test_what_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"must be a number between 0 and 1|exclude each other"):
        find_contender(name)
