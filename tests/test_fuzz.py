"""Some lives of :mod:`tests.fuzz`, the same in each run; `JORGE_HYPOTHESIS=long` lives two thousand."""

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz import Life, fuzz

# A copy tells that the checkpoint's options are others than its own; that is tested elsewhere.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:the checkpoint was saved with other options")]

TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=min(settings().max_examples, 2000) // 4,
    stateful_step_count=15,
    suppress_health_check=list(HealthCheck),
)


def test_it_ends_after_its_time() -> None:
    assert fuzz(1e-9, examples=1, length=2) == 1
    assert fuzz(0.0) == 0
