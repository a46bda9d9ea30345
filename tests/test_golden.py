"""States that were saved once load for ever, and numbers stay what they are."""

import json
from typing import Any

import pytest
import torch

from jorge import Jorge
from jorge.methods import METHODS
from tests.golden.make import AFTER, BEFORE, GRAFTS, HERE, advance, build, parameters, trajectory, weights

CASES = [(method, graft) for method in METHODS for graft in GRAFTS]
CHANGED = "numbers have changed: if that is meant, say so in CHANGELOG.md and run python -m tests.golden.make"


def close(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    wide = 0.02 if found.dtype == torch.bfloat16 else 2e-4
    torch.testing.assert_close(found, expected, rtol=wide, atol=wide, msg=lambda says: f"{name}: {CHANGED}\n{says}")


@pytest.mark.parametrize(("method", "graft"), CASES)
def test_a_state_of_this_layout_loads_and_goes_on(method: str, graft: str) -> None:
    kept = torch.load(HERE / f"state-{method}-{graft}.pt", weights_only=True)
    params = parameters()
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(kept["before"][name])
    optimizer = build(params, method, graft)
    optimizer.load_state_dict(kept["state"])
    own = optimizer.state_dict()
    assert own["state"].keys() == kept["state"]["state"].keys()
    for key, entry in kept["state"]["state"].items():
        assert own["state"][key].keys() == entry.keys()
        for name, value in entry.items():
            if isinstance(value, torch.Tensor):
                assert torch.equal(own["state"][key][name], value)
                assert own["state"][key][name].dtype == value.dtype
            else:
                assert own["state"][key][name] == value
    advance(params, optimizer, 1 + BEFORE, AFTER)
    for name, value in weights(params).items():
        close(name, value, kept["after"][name])


@pytest.mark.parametrize(("method", "graft"), CASES)
def test_numbers_are_what_they_were(method: str, graft: str) -> None:
    expected = json.loads((HERE / "trajectories.json").read_text())[f"{method}, {graft}"]
    for step, found in trajectory(method, graft).items():
        for name, values in found.items():
            kind = parameters()[name].dtype
            close(f"{name} at step {step}", torch.tensor(values).to(kind), torch.tensor(expected[step][name]).to(kind))


def test_options_that_came_since_have_their_defaults() -> None:
    kept = torch.load(HERE / "state-whitening-adam.pt", weights_only=True)
    for group in kept["state"]["param_groups"]:
        for name in ("max_consecutive_skips", "batch_dims", "compile_step"):
            group.pop(name, None)
    params = parameters()
    plain: dict[str, Any] = {"params": [p for name, p in params.items() if name != "experts"]}
    experts: dict[str, Any] = {"params": [params["experts"]], "batch_dims": 1}
    optimizer = Jorge([plain, experts], block_size=8, max_dim=25)
    optimizer.load_state_dict(kept["state"])
    assert optimizer.param_groups[0]["max_consecutive_skips"] == 100
    assert [group["batch_dims"] for group in optimizer.param_groups] == [0, 1]
