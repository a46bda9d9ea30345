"""Runs that end with an average of their weights, whichever the optimizer is."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
import torch
from torch import nn

from jorge_lab.contenders import CONTENDERS, UnsuitableError
from jorge_lab.contenders.contender import Average
from jorge_lab.contenders.finding import find_contender
from jorge_lab.contenders.tuned import tuned_file
from jorge_lab.errors import UsageError
from jorge_lab.runs.averaging import Averaged
from jorge_lab.runs.checkpoints import Checkpoints
from jorge_lab.runs.run import train
from jorge_lab.statistics.reaching import smooth
from jorge_lab.statistics.summary import summarize
from jorge_lab.tasks import TASKS
from lab.tests.tiny import Images, Tokens, tiny

DEVICES = [torch.device("cpu"), *[torch.device("cuda")] * torch.cuda.is_available()]
#: Schedule-free AdamW ends with an average of its own.
ALL = [name for name in CONTENDERS if name != "schedule-free"]


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


@pytest.mark.parametrize("device", DEVICES, ids=str)
def test_running_statistics_are_averaged_and_what_is_measured_is_the_averages(device: torch.device) -> None:
    task = tiny(steps=20)
    data = task.load().to(device)
    model = Images().to(device)
    averaged = Averaged(model, Average("tail", 0.2), 20)
    seen = []
    for step in range(1, 21):
        model(data.train[0] * step)  # moves the running statistics
        for p in model.parameters():
            p.data.add_(0.01)
        averaged.take(model, step)
        seen.append({name: value.double().clone() for name, value in model.state_dict().items()})
    expected = {name: sum(state[name] for state in seen[-4:]) / 4 for name in seen[0]}
    for name, value in averaged.model.module.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(value.double(), torch.as_tensor(expected[name]), rtol=1e-5)
    by_hand = Images().to(device)
    by_hand.load_state_dict({name: torch.as_tensor(value) for name, value in expected.items()})
    found = averaged.measured(task, data, seed=0, steps=20)
    assert found["metric"] == pytest.approx(task.evaluate(by_hand, data), rel=1e-5)
    loss = task.loss(by_hand, next(task.batches(data, 0, skip=19))).item()  # a twentieth of the steps is one
    assert found["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("kind", ["tail=0.3", "ema=0.9"])
@pytest.mark.parametrize("optimizer", ALL)
def test_any_optimizer_may_end_with_one_and_trains_as_without(optimizer: str, kind: str) -> None:
    if missing := CONTENDERS[optimizer].missing():
        pytest.skip(missing)
    task = tiny(steps=40)
    try:
        plain = train(task, CONTENDERS[optimizer], 0, 40, task.load(), lambda *_: None)
    except UnsuitableError:
        task = tiny(Tokens, steps=40)
        plain = train(task, CONTENDERS[optimizer], 0, 40, task.load(), lambda *_: None)
    record = train(task, find_contender(f"{optimizer}:{kind}"), 0, 40, task.load(), lambda *_: None)
    assert record["losses"] == plain["losses"]
    assert record["settings"] == plain["settings"]
    assert "averaged" not in plain
    ours, theirs = summarize([plain, record])
    assert ours.final_loss == pytest.approx(smooth(plain["losses"], 40)[-1])
    assert (theirs.final_loss, theirs.metric) == (record["averaged"]["loss"], record["averaged"]["metric"])
    assert theirs.label == f"{CONTENDERS[optimizer].label}, {kind}"
    assert record["averaged"]["loss"] < fmean(record["losses"][:2])


@pytest.mark.parametrize("name", ["mnist1d-mlp", "mnist"])
def test_an_average_of_one_step_is_the_last_weights(name: str) -> None:
    task = replace(TASKS[name]("smoke"), steps=20)
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


def test_an_average_has_the_settings_that_were_tuned_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    entries = ", ".join(
        f'"{name}": {{"options": {{"lr": {lr}}}}}'
        for name, lr in (("adamw", 0.5), ("adamw:schedule=cosine", 0.25), ("jorge:interval=5", 0.125))
    )
    path = tmp_path / "tuned.json"
    path.write_text(f'{{"mnist1d-mlp": {{"smoke": {{{entries}}}}}}}')
    monkeypatch.setenv("JORGE_TUNED", str(path))
    assert tuned_file() == path
    task = TASKS["mnist1d-mlp"]("smoke")
    for name, lr in (
        ("adamw:tail=0.2", 0.5),
        ("adamw:ema=0.9:schedule=cosine", 0.25),
        ("adamw:schedule=cosine:ema=0.9", 0.25),
        ("jorge:interval=5:tail=0.2", 0.125),
    ):
        assert find_contender(name).options(task, "tuned")["lr"] == lr


@pytest.mark.parametrize(
    "name", ["sgd:tail=0", "sgd:tail=1", "sgd:ema=much", "jorge:tail=0.2:ema=0.9", "schedule-free:tail=0.2"]
)
def test_what_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"between 0 and 1|exclude each other|an average of its own"):
        find_contender(name)
