"""Some lives of :mod:`tests.fuzz`, the same in each run; `JORGE_HYPOTHESIS=long` lives two thousand."""

import pytest
from hypothesis import HealthCheck, settings

from tests.fuzz import Life, fuzz

# Of a copy whose options are others than the checkpoint's, and of a scheduler that steps first: tested elsewhere.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=min(settings().max_examples, 2000) // 4,
    stateful_step_count=15,
    suppress_health_check=list(HealthCheck),
)


def test_it_ends_after_its_time() -> None:
    assert fuzz(1e-3, examples=1, length=2) >= 1
    assert fuzz(0.0) == 0
