"""The claim of steps, on real data: with settings from the baseline alone, at most 0.6 of its steps to its best loss.

Counts of steps are the same on every machine but for rounding; seconds are measured by `jorge compare`, not here.
"""

from dataclasses import replace

import pytest

from jorge.lab.opponents import CONTENDERS
from jorge.lab.run import train
from jorge.lab.summary import summarize
from jorge.lab.tasks import TASKS

pytestmark = pytest.mark.slow

#: Of the tasks whose data pip brings, three of different kinds, and shorter than at their size, for the test's time.
STEPS = {"mnist": 100, "autoencoder": 150, "shakespeare": 300}


@pytest.mark.parametrize("name", STEPS)
def test_fewer_steps_than_the_baseline_and_no_more_than_shampoo(name: str) -> None:
    task = replace(TASKS[name]("small"), steps=STEPS[name])
    data = task.load()
    names = ("jorge", task.recipe.baseline, "shampoo")
    records = [train(task, CONTENDERS[n], 0, task.steps, data, lambda *_: None) for n in names]
    jorge, _, shampoo = summarize(records)
    assert jorge.step_ratio is not None
    assert jorge.step_ratio <= 0.6
    assert shampoo.step_ratio is not None
    # Of the baseline's steps, as one seed's difference is a few steps, even where the target takes only 25 of them.
    assert jorge.step_ratio <= shampoo.step_ratio + 0.05
