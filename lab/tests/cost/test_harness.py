"""What the benchmark scripts stand on: their measurements on cases whose answer is known."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch

from jorge.methods import DAMPING_PERIOD
from jorge_lab.contenders import state_bytes
from jorge_lab.contenders.parts import Parts
from jorge_lab.cost import harness, shapes
from jorge_lab.cost.allocation import Allocation, allocations
from jorge_lab.cost.contenders import build, check, jorge_options, never_refresh, settle
from jorge_lab.cost.counting import counted
from jorge_lab.cost.muon import orthogonalize
from jorge_lab.cost.networks import ResNet18, SmallGPT, SmallViT

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("resnet18", 11_689_512),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("vit_s", 22_050_664),
        ("gpt2", 124_439_808),
        ("llama7b_layer", 202_383_360),
    ],
)
def test_the_shapes_add_up_to_the_known_sizes(model: str, parameters: int) -> None:
    named = shapes.MODELS[model]()
    assert sum(math.prod(shape) for _, shape in named) == parameters
    assert len({name for name, _ in named}) == len(named)


def test_the_models_have_the_usual_sizes_and_give_logits() -> None:
    resnet = ResNet18()
    assert sum(p.numel() for p in resnet.parameters()) == 11_173_962
    assert ResNet18(4)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert SmallViT(32, 1)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert SmallGPT(32, 1, 8)(torch.zeros(2, 8, dtype=torch.long)).shape == (16, 256)


def test_the_peak_of_memory_is_exact() -> None:
    kept: list[torch.Tensor] = []

    def call() -> None:
        first, second = torch.empty(1000), torch.empty(2000)
        kept.append(torch.empty(500))
        del first, second
        kept.append(torch.empty(100))

    (found,) = allocations([call], CPU)
    assert found == Allocation(peak=4 * 3500, held=4 * 600)


def test_what_an_earlier_call_took_makes_room_when_released() -> None:
    kept: list[torch.Tensor] = []

    def call() -> None:
        kept.clear()
        torch.empty(1500)

    found = allocations([lambda: kept.append(torch.empty(1000)), call], CPU)
    assert found == [Allocation(4 * 1000, 4 * 1000), Allocation(4 * 500, -4 * 1000)]


def test_the_state_of_a_jorge_weighs_what_its_plan_says() -> None:
    named = shapes.parameters("tiny", CPU)
    contender = build("jorge", named)
    contender.step()
    assert contender.jorge is not None
    assert state_bytes(contender.optimizer) == contender.jorge.plan().state_bytes


@pytest.mark.parametrize("name", ["jorge", "jorge-congruence", "jorge-16", "jorge-exact"])
@pytest.mark.parametrize("interval", [1, 10])
def test_a_settled_jorge_takes_the_steps_of_one_that_has_got_there(name: str, interval: int) -> None:
    settled, real = (build(name, shapes.parameters("tiny", CPU), interval=interval) for _ in range(2))
    settled.step()
    assert real.jorge is not None
    real.jorge.param_groups[0]["warmup_refreshes"] = 0
    real.steps(interval * (2 * DAMPING_PERIOD + 1) - 1)  # past the refreshes that are repeated
    for number in range(DAMPING_PERIOD):
        settle(settled, interval, damped=number == DAMPING_PERIOD - 1)
        for _ in range(interval):
            counts = [(m.total, m.launches) for m in (counted(x.step, CPU) for x in (settled, real))]
            assert counts[0] == counts[1]
    never_refresh(settled)
    plain = [counted(settled.step, CPU).total for _ in range(12)]
    assert len(set(plain)) == 1


def test_a_cycle_of_intervals_is_its_refreshes_and_the_steps_without() -> None:
    contender = build("jorge", shapes.parameters("tiny", CPU))
    contender.step()
    settle(contender)
    refresh, plain = harness.flops(contender.step), harness.flops(contender.step)
    settle(contender, damped=True)
    damped = harness.flops(contender.step)
    assert damped >= refresh > plain > 0
    for interval in (10, 50):
        settle(contender, interval)
        cycle = (DAMPING_PERIOD - 1) * refresh + damped + DAMPING_PERIOD * (interval - 1) * plain
        assert harness.flops(partial(contender.steps, DAMPING_PERIOD * interval)) == cycle


def test_operators_flops_and_waits_are_counted() -> None:
    a = torch.ones(4, 8)
    meter = counted(lambda: (a.T @ a).sum().item(), CPU)
    assert (meter.total, meter.launches, meter.waits, meter.flops) == (4, 3, 1, 2 * 8 * 8 * 4)
    assert meter.moved_bytes == 4 * (8 * 8 + 1 + 1)  # the sum reads all and writes a number, which the host reads
    assert harness.flops(lambda: a.T @ a) == 2 * 8 * 8 * 4


def test_muon_in_float32_is_torchs_but_for_the_rounding() -> None:
    matrix = torch.randn(24, 16)
    singular = torch.linalg.svdvals(orthogonalize(matrix))
    assert singular.min() > 0.3
    assert singular.max() < 1.3
    weights = []
    for name in ("muon-float32", "muon-bfloat16"):
        named = shapes.parameters("tiny", CPU)
        contender = build(name, named)
        assert isinstance(contender.optimizer, Parts)
        for part in contender.optimizer.parts:
            part.param_groups[0]["lr"] = 0.1
        before = [p.detach().clone() for _, p in named]
        contender.step()
        weights.append([p.detach() - b for (_, p), b in zip(named, before, strict=True)])
    for a, b in zip(*weights, strict=True):
        assert torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999


def test_cases_take_turns_and_slow_ones_sit_out() -> None:
    order: list[str] = []
    cases = {name: partial(order.append, name) for name in "ab"}
    samples = harness.interleave(cases, CPU, rounds=5, seconds_each=0.0)
    assert order == ["a", "b"] * harness.FEWEST_ROUNDS
    assert all(len(taken) == harness.FEWEST_ROUNDS for taken in samples.values())


def test_the_rate_is_that_of_the_fastest_product(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = iter([0.5, 0.25, 4.0, 2.0, 1.0, 1.0, 1.0, 1.0])  # twice each: mm and bmm of four, of both sides
    monkeypatch.setattr(harness, "seconds", lambda call, device: next(taken))
    found = harness.gemm_rate(CPU, sides=(32, 64), repeats=2)
    assert found == {"flops_per_second": 2 * 4 * 64**3 / 1.0, "product": "bmm", "side": 64}


def test_a_table_and_a_file_are_written(tmp_path: Path) -> None:
    assert harness.table(["a", "b", "c"], [["x", 1234.5], [None, 0.12345, 3]]).splitlines() == [
        "| a | b | c |",
        "|---|---|---|",
        "| x | 1234 | – |",
        "| – | 0.123 | 3 |",
    ]
    harness.write(tmp_path / "out.json", {"a": 1})
    harness.write(None, {})
    assert json.loads((tmp_path / "out.json").read_text()) == {"a": 1}
    assert harness.heading(harness.where(CPU)).count(";") >= 5


def test_spreads() -> None:
    assert harness.Spread.of([3.0]) == harness.Spread(3.0, 3.0, 3.0)
    assert harness.Spread.of([1.0, 2.0, 3.0, 4.0, 5.0]).plus(harness.Spread.of([1.0])) == harness.Spread(4.0, 3.0, 5.0)


def test_names_are_read_or_refused() -> None:
    assert jorge_options("jorge-bf16-256") == {"preconditioner_dtype": torch.bfloat16, "block_size": 256}
    for name in ("jorge-fast", "jorgen", "lion"):
        with pytest.raises(SystemExit):
            check([name])
