import os
from importlib.util import find_spec

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("jorge", deadline=None, derandomize=True)
hypothesis.settings.register_profile("ci", hypothesis.settings.get_profile("jorge"))
hypothesis.settings.register_profile("long", deadline=None, max_examples=2000)
hypothesis.settings.load_profile(os.environ.get("JORGE_HYPOTHESIS", "jorge"))

# It is a subclass of torchtitan's: without that there is nothing to look for doctests in.
collect_ignore = [] if find_spec("torchtitan") else ["src/jorge/integrations/torchtitan.py"]


@pytest.fixture(autouse=True)
def _one_thread_and_a_seed() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first."""
    items.sort(key=lambda item: "slow" in item.keywords)
