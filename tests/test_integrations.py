"""Glue for frameworks: what it builds is what the framework's own AdamW would be, as Jorge."""

import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import nn

from jorge import Jorge, param_groups
from jorge.integrations.timm import register
from jorge.integrations.transformers import from_arguments
from tests.frameworks import framework

pytestmark = pytest.mark.filterwarnings("default")


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 12), nn.LayerNorm(12), nn.Linear(12, 2))


def options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [{key: v for key, v in group.items() if key != "params"} for group in optimizer.param_groups]


def test_trainers_arguments_are_those_of_its_adamw() -> None:
    args = SimpleNamespace(
        learning_rate=2e-3, adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6, weight_decay=0.2, optim="adamw_torch"
    )
    factory, keywords = from_arguments(cast(Any, args), interval=3)
    net = model()
    found = factory()(net, **keywords)
    adamw = torch.optim.AdamW(
        param_groups(net, weight_decay=0.2), lr=2e-3, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.2
    )
    wanted, _ = Jorge.from_adamw(adamw, interval=3)
    for mine, theirs in zip(options(found), options(wanted), strict=True):
        for key in ("lr", "betas", "eps", "weight_decay", "interval", "param_names"):
            assert mine[key] == theirs[key], key
    assert {group["weight_decay"] for group in options(found)} == {0.0, 0.2}


def test_an_option_goes_before_what_the_arguments_say() -> None:
    args = SimpleNamespace(learning_rate=1, adam_beta1=0, adam_beta2=0, adam_epsilon=0, weight_decay=0.2)
    assert from_arguments(cast(Any, args), lr=3e-4, weight_decay=0.0)[1]["lr"] == 3e-4
    assert from_arguments(cast(Any, args), lr=3e-4, weight_decay=0.0)[1]["weight_decay"] == 0.0


def test_the_package_of_glue_loads_no_framework() -> None:
    code = (
        "import sys, jorge.integrations, jorge.integrations.transformers, jorge.integrations.timm; "
        "print({'transformers', 'timm', 'torchtitan'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def registered() -> ModuleType:
    """timm's optimizers, Jorge among them."""
    found = framework("timm.optim")
    register()
    return found


def test_timm_has_it_by_name_after_it_was_registered() -> None:
    optim = registered()
    before = optim.get_optimizer_info("jorge")
    register()
    assert optim.get_optimizer_info("jorge") is before
    found = optim.create_optimizer_v2(model(), opt="jorge", lr=2e-3, weight_decay=0.2, betas=(0.8, 0.95), eps=1e-6)
    assert isinstance(found, Jorge)
    for group in found.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (2e-3, (0.8, 0.95), 1e-6)
        assert group["momentum"] is None  # the first of betas
    assert sorted(group["weight_decay"] for group in found.param_groups) == [0.0, 0.2]


def test_timms_lookahead_of_it_resumes_to_the_bit() -> None:
    optim = registered()
    data = torch.randn(16, 4, 8)

    def begin() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        net = model()
        return net, optim.create_optimizer_v2(net, opt="lookahead_jorge", lr=1e-2)

    def go(net: nn.Module, optimizer: torch.optim.Optimizer, batches: torch.Tensor) -> None:
        for batch in batches:
            optimizer.zero_grad()
            net(batch).square().mean().backward()
            optimizer.step()

    (whole, first), (half, second), (resumed, third), (cold, fourth) = (begin() for _ in range(4))
    go(whole, first, data)
    go(half, second, data[:8])
    third.load_state_dict(second.state_dict())
    for net, optimizer in ((resumed, third), (cold, fourth)):
        net.load_state_dict(half.state_dict())
        go(net, optimizer, data[8:])
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters(), strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(whole.parameters(), cold.parameters(), strict=True))


def test_torchtitans_recipe_is_that_of_its_adamw() -> None:
    titan = framework("torchtitan.components.optimizer")
    from jorge.integrations.torchtitan import default_jorge

    (mine,) = default_jorge(lr=2e-3).build(model_parts=[model()])
    config = titan.default_adamw(lr=2e-3)
    config.implementation = "for-loop"
    (theirs,) = config.build(model_parts=[model()])
    assert isinstance(mine, Jorge)
    for key in ("lr", "betas", "eps", "weight_decay", "param_names"):
        assert mine.param_groups[0][key] == theirs.param_groups[0][key], key
    (other,) = default_jorge(interval=3, weight_decay=0.0).build(model_parts=[model()])
    assert (other.param_groups[0]["interval"], other.param_groups[0]["weight_decay"]) == (3, 0.0)


def test_torchtitans_container_knows_torchtitans_own_too() -> None:
    titan = framework("torchtitan.components.optimizer")
    from jorge.integrations.torchtitan import JorgeContainer

    config = JorgeContainer.Config(param_groups=titan.default_adamw().param_groups, implementation="for-loop")
    (optimizer,) = config.build(model_parts=[model()])
    assert type(optimizer) is torch.optim.AdamW


#: A step with each stage of ZeRO, which puts one flat parameter into the group of the optimizer that it is given. In a
#: process of its own, as DeepSpeed keeps its process groups for good.
ZERO = """
import warnings, deepspeed, torch
from torch import nn
from jorge import Jorge

for stage in (1, 2, 3):
    for named in (False, True):
        net = nn.Sequential(nn.Linear(64, 300), nn.GELU(), nn.Linear(300, 2))
        optimizer = Jorge(net.named_parameters() if named else net.parameters(), lr=0.02)
        zero = {"zero_allow_untested_optimizer": True, "zero_optimization": {"stage": stage}}
        engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config={"train_batch_size": 4, **zero})
        engine.backward(engine(torch.ones(4, 64)).square().mean())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                engine.step()
            except RuntimeError as error:
                print("error", error)
        print(*(f"warning {each.message}" for each in caught if "flat" in str(each.message)))
"""


@pytest.mark.slow
def test_deepspeeds_zero_is_warned_of_or_with_names_refused() -> None:
    framework("deepspeed")
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ZERO], capture_output=True, text=True, env={**os.environ, **alone}, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("warning no parameter is a matrix, and parameter 0 of group 0 has 20102 elements") == 3
    assert done.stdout.count("error param group 0 has 1 parameters and 4 names") == 3


@pytest.mark.parametrize("method", ["whitening", "congruence", "binomial", "exact"])
def test_a_state_goes_through_safetensors_to_the_bit(method: str) -> None:
    """As the guide to the state writes it; `make examples` has the package."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    nets = [model(), model()]
    first = Jorge(nets[0].named_parameters(), method=method)

    def train(net: nn.Module, optimizer: Jorge, steps: range) -> None:
        for step in steps:
            optimizer.zero_grad()
            net(torch.randn(6, 8, generator=torch.Generator().manual_seed(step))).square().mean().backward()
            optimizer.step()

    train(nets[0], first, range(5))
    nets[1].load_state_dict(nets[0].state_dict())
    second = Jorge(nets[1].named_parameters())
    saved = first.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {"param_groups": saved["param_groups"], "state": {}}
    for key, entry in saved["state"].items():
        rest["state"][key] = {name: v for name, v in entry.items() if not isinstance(v, torch.Tensor)}
        tensors |= {f"{key}/{name}": v for name, v in entry.items() if isinstance(v, torch.Tensor)}
    data = safetensors.save(tensors, metadata={"rest": json.dumps(rest)})
    loaded = json.loads(json.dumps(rest))
    loaded["state"] = {int(key): entry for key, entry in loaded["state"].items()}
    for place, value in safetensors.load(data).items():
        key, name = place.split("/")
        loaded["state"][int(key)][name] = value
    second.load_state_dict(loaded)
    train(nets[0], first, range(5, 9))
    train(nets[1], second, range(5, 9))
    for p, q in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert torch.equal(p, q)
