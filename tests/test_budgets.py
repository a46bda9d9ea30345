"""What a step of a large network may cost, in counts: operators, FLOPs and memory at the shapes of ResNets."""

from statistics import median
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from jorge import Jorge, arrange
from jorge.methods import METHODS
from jorge.options import Options
from jorge_lab.cost.allocation import allocations
from jorge_lab.cost.counting import counted
from jorge_lab.cost.shapes import MODELS

META, CPU = torch.device("meta"), torch.device("cpu")


def network(name: str, device: torch.device = META, width: int = 1) -> list[nn.Parameter]:
    """Parameters of a network, channels divided by `width`, with gradients."""
    params = []
    for _, shape in MODELS[name]():
        sizes = [max(1, d // width) if i < 2 else d for i, d in enumerate(shape)]
        params.append(nn.Parameter(torch.randn(sizes, device=device)))
        params[-1].grad = torch.randn(sizes, device=device)
    return params


def set_steps(optimizer: Jorge, steps: int) -> None:
    for state in optimizer.state.values():
        state["step"] = steps


def counts(name: str, **options: Any) -> tuple[int, int]:
    """Operators of a late step that refreshes and of one that does not."""
    optimizer = Jorge(network(name), lr=0.1, interval=10, warmup_refreshes=0, **options)
    optimizer.step()
    set_steps(optimizer, 999)
    refresh, plain = (counted(optimizer.step, META).total for _ in range(2))
    return refresh, plain


@pytest.mark.parametrize(
    ("width", "block_size", "growth"), [("", "auto", 1.2), ("", 256, 1.2), ("", 1024, 1.2), ("/4", "auto", 1.01)]
)
def test_operators_hardly_grow_with_depth(width: str, block_size: Any, growth: float) -> None:
    """At full width the memory of a refresh holds a part of the blocks, and of a deeper network a smaller one."""
    deep, shallow = (counts(name + width, block_size=block_size) for name in ("resnet101", "resnet50"))
    assert deep[0] <= growth * shallow[0]
    assert deep[1] <= 1.1 * shallow[1] < 0.5 * shallow[0]


def test_a_refresh_of_several_substeps_takes_no_more_memory_than_is_reckoned_with(monkeypatch: Any) -> None:
    """What one substep held is gone in the next."""
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    params = [nn.Parameter(torch.randn(96, 96)) for _ in range(8)] + [
        nn.Parameter(torch.randn(96, 64)) for _ in range(8)
    ]
    for p in params:
        p.grad = torch.randn_like(p)
    optimizer = Jorge(params, lr=0.1, grafting="sgd", workspace=None)
    optimizer.step()  # the state is there
    specs = [arrange.ParamSpec(tuple(p.shape), p.dtype) for p in params]
    (work,) = arrange.arrange(specs, Options(lr=0.1, workspace=None))
    reckoned = sum(arrange._temporary(stack, work) for stack in work.stacks)
    assert METHODS["whitening"].refresh_at(1, 1).substeps == 3
    (second,) = allocations([optimizer.step], CPU)
    assert second.peak <= 1.15 * reckoned


def test_a_refresh_does_what_is_one_number_a_block_for_all_stacks_at_once() -> None:
    """Half of what it took stack by stack, 1,994 operators (ResNet-50's shapes, a quarter as wide; views left out)."""
    optimizer = Jorge(network("resnet50/4"), lr=0.1, interval=7, warmup_refreshes=0, grafting="adam")
    optimizer.step()
    set_steps(optimizer, 7 * 7 * 20 - 1)  # before a refresh that applies the damping, too
    assert counted(optimizer.step, META).launches <= 975


def test_another_shape_costs_few_operators() -> None:
    """What is elementwise is done on all shapes at once, and what is one number a parameter in one tensor."""
    few, many = ([nn.Parameter(torch.zeros(d + 8, d)) for d in range(4, 4 + count)] for count in (2, 6))
    few += [nn.Parameter(torch.zeros(3))]
    many += [nn.Parameter(torch.zeros(d)) for d in range(3, 13)]
    plain = []
    for params in (few, many):
        optimizer = Jorge(params, lr=0.1, grafting="adam", weight_decay=0.1, interval=9, warmup_refreshes=0)
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()
        plain.append(counted(optimizer.step, CPU).launches)
    assert plain[0] <= 86
    # A matrix's direction, twice multiplied; its length, and the graft's; its norm and those of rows and of columns.
    assert plain[1] - plain[0] == 4 * 7


def test_fewer_operators_for_more_workspace() -> None:
    assert counts("resnet50", workspace=None)[0] < 0.5 * counts("resnet50")[0]


def test_stagger_keeps_every_step_near_the_median() -> None:
    optimizer = Jorge(network("resnet50"), lr=0.1, interval=10, warmup_refreshes=0, stagger=True)
    optimizer.step()
    set_steps(optimizer, 1000)
    flops = []
    for _ in range(10):
        with FlopCounterMode(display=False) as counter:
            optimizer.step()
        flops.append(counter.get_total_flops())
    assert max(flops) <= 1.1 * median(flops)
    assert min(flops) >= 0.9 * median(flops)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", ["auto", 32])
@pytest.mark.parametrize("workspace", [1.0, 0.5])
def test_temporary_memory_keeps_to_the_workspace(block_size: Any, workspace: float, monkeypatch: Any) -> None:
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    params = network("resnet50", CPU, width=8)
    optimizer = Jorge(params, lr=0.1, interval=1, block_size=block_size, workspace=workspace)

    def again() -> None:
        optimizer.step()

    _, second = allocations([optimizer.step, again], CPU)
    total = sum(p.numel() * p.element_size() for p in params)
    assert second.peak <= 1.5 * max(workspace, 1.0) * total


@pytest.mark.slow
def test_temporary_memory_of_linear_maps_keeps_to_the_workspace_too(monkeypatch: Any) -> None:
    """They are measured and adapted besides, by a work set's worth or so."""
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    params = [nn.Parameter(torch.zeros(512, 512)) for _ in range(12)]
    for p in params:
        p.grad = torch.randn(512, 512)
    optimizer = Jorge(params, interval=1)

    def again() -> None:
        optimizer.step()

    _, second = allocations([optimizer.step, again], CPU)
    assert second.peak <= 1.2 * sum(p.nbytes for p in params)
