"""The held-out tasks build, train and are scored at their smallest size."""

from math import isfinite

import pytest

from jorge_lab.contenders import CONTENDERS
from jorge_lab.runs.run import train
from jorge_lab.tasks import own
from jorge_lab.tasks.task import DataMissingError

FIRST = [f"jorge_lab.tasks.held_out:{name}" for name in ("lstm", "vae", "denoising", "coordinates", "depthwise")]
SECOND = [
    f"jorge_lab.tasks.held_out_second:{name}" for name in ("tabular", "diffusion", "contrastive", "words", "physics")
]


@pytest.mark.parametrize("name", FIRST + SECOND)
def test_a_held_out_task_runs_through_the_laboratory(name: str) -> None:
    try:
        task = own.load(name, "smoke")
    except DataMissingError as error:
        pytest.skip(str(error))
    assert own.load(name, "small").steps > task.steps
    record = train(task, CONTENDERS["jorge"], 0, task.steps, task.load(), lambda *_: None)
    assert record["diverged_at"] is None
    assert sum(record["losses"][-5:]) < sum(record["losses"][:5])
    assert isfinite(record["evaluations"][-1][1])
