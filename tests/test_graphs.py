"""Steps from graphs that the optimizer captures, with a stand-in for graphs: they are the steps without, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge, graphs
from jorge.methods import METHODS
from jorge.skips import Skips
from jorge.trace import Trace
from jorge_lab.cost.counting import counted
from tests.recorded import Plain, Recorder

SHAPES = ((12, 8), (6, 4, 3, 3), (12, 8), (40, 6), (12,), (8, 12))
CAPTURED = [name for name, method in METHODS.items() if not method.waits]
#: Steps until the gap has reached the interval, with the options below.
WARMUP = 6


@pytest.fixture(autouse=True)
def recorder(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.setitem(graphs.RECORDERS, "cpu", Recorder)
    Recorder.forget()
    return monkeypatch


def parameters(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def give(params: list[nn.Parameter], step: int, missing: tuple[int, ...] = (), scale: float = 1.0) -> None:
    """New tensors each step, as after `zero_grad()`."""
    generator = torch.Generator().manual_seed(100 + step)
    for i, p in enumerate(params):
        grad = scale * torch.randn(p.shape, generator=generator).to(p.dtype)
        p.grad = None if i in missing else grad


def made(params: Any, **options: Any) -> Jorge:
    return Jorge(
        params, **{"lr": 0.05, "interval": 3, "warmup_refreshes": 2, "max_dim": 32, "cuda_graphs": True} | options
    )


def everything(params: list[nn.Parameter], optimizer: Jorge) -> list[Any]:
    entries = [optimizer.state[p] for p in params]
    state = [v.clone() if isinstance(v, Tensor) else v for entry in entries for v in entry.values()]
    return [p.detach().clone() for p in params] + state


def same(some: list[Any], others: list[Any]) -> bool:
    return len(some) == len(others) and all(
        torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(some, others, strict=True)
    )


def close(some: list[Any], others: list[Any], most: float) -> bool:
    return all(
        bool((a.double() - b.double()).norm() <= most * b.double().norm() + 1e-12) if isinstance(a, Tensor) else a == b
        for a, b in zip(some, others, strict=True)
    )


def trained(
    patch: pytest.MonkeyPatch,
    kind: type[Recorder] | None,
    steps: int,
    change: Callable[[Jorge, list[nn.Parameter], int], None] = lambda optimizer, params, step: None,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> list[list[Any]]:
    """All that there is after each step; `None` takes them as without the option."""
    params = parameters(dtype)
    patch.setitem(graphs.RECORDERS, "cpu", kind or Recorder)
    optimizer = made(params, **options, cuda_graphs=kind is not None)
    found = []
    for step in range(steps):
        give(params, step)
        change(optimizer, params, step)
        optimizer.step()
        found.append(everything(params, optimizer))
    return found


def agree(patch: pytest.MonkeyPatch, steps: int, *args: Any, most: float = 2e-4, **options: Any) -> None:
    """Replayed steps are those without graphs, to the bit, and those without the option but for rounding."""
    replayed = trained(patch, Recorder, steps, *args, **options)
    assert Recorder.replayed > 0
    plain = trained(patch, Plain, steps, *args, **options)
    first = next((i for i, (a, b) in enumerate(zip(replayed, plain, strict=True)) if not same(a, b)), None)
    assert first is None, f"step {first}"
    assert close(replayed[-1], trained(patch, None, steps, *args, **options)[-1], most)


def schedule(optimizer: Jorge, params: list[nn.Parameter], step: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = 0.05 * 0.97**step
        group["weight_decay"] = 0.01 * step
        if step % 10 == 5:
            group["momentum"] = 0.8
            group["betas"] = (0.85, 0.98)


@pytest.mark.parametrize("method", CAPTURED)
@pytest.mark.parametrize("grafting", ["sgd", "adam"])
def test_replayed_steps_are_the_steps_without_graphs(recorder: pytest.MonkeyPatch, method: str, grafting: str) -> None:
    """Past the warm-up there are all kinds: without a refresh, with one, and with one that is damped."""
    steps = WARMUP + 3 * 14 + 4
    agree(recorder, steps, schedule, method=method, grafting=grafting)
    kinds = 2 if method == "binomial" else 3
    assert Recorder.captured == kinds
    assert Recorder.warmed <= kinds + 1  # the early refreshes are not alike, and end soon
    assert Recorder.replayed + Recorder.warmed == steps - WARMUP


@pytest.mark.parametrize(
    ("options", "dtype"),
    [
        ({"nesterov": False}, torch.float32),
        ({"stagger": True}, torch.float32),
        ({"maximize": True, "lr": torch.tensor(0.02)}, torch.float32),
        ({"block_size": 5, "damping": 0.1}, torch.float32),
        ({"warmup_refreshes": 0, "graft_norm": "frobenius", "adapt_variance": False}, torch.float32),
        ({"preconditioner_dtype": torch.bfloat16, "grafting": "sgd"}, torch.float32),
        ({"matmul_precision": "bfloat16", "nonfinite": "raise"}, torch.float32),
        ({}, torch.bfloat16),
        ({}, torch.float64),
    ],
)
def test_so_they_are_with_other_options(
    recorder: pytest.MonkeyPatch, options: dict[str, Any], dtype: torch.dtype
) -> None:
    agree(recorder, 40, dtype=dtype, most=0.05 if dtype == torch.bfloat16 else 2e-3, **options)


def test_steps_with_gradients_that_are_not_finite_are_skipped_and_counted(recorder: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = made(params)
    for step in range(WARMUP + 12):
        give(params, step)
        optimizer.step()
    before, replayed = everything(params, optimizer), Recorder.replayed
    for step, bad in enumerate((torch.nan, torch.inf, 1e30)):
        give(params, step)
        assert params[2].grad is not None
        params[2].grad[3, 3] = bad
        optimizer.step()
        assert optimizer.skipped_steps() == Skips(step + 1, step + 1)
    assert Recorder.replayed == replayed + 3
    now = everything(params, optimizer)
    assert same([v for v in now if isinstance(v, Tensor)], [v for v in before if isinstance(v, Tensor)])
    assert {entry["step"] for entry in optimizer.state.values()} == {WARMUP + 15}
    give(params, 99)
    optimizer.step()
    assert optimizer.skipped_steps() == Skips(3, 0)
    assert not same(everything(params, optimizer), now)


def some_missing(optimizer: Jorge, params: list[nn.Parameter], step: int) -> None:
    """Now and then one, and from the 30th step on another."""
    if step in (1, 12, 13, 20, 25):
        params[step % 4].grad = None
    if step >= 30:
        params[1].grad = None


def test_gradients_that_are_missing_are_handled(recorder: pytest.MonkeyPatch) -> None:
    agree(recorder, 60, some_missing)
    kinds = Recorder.captured
    assert kinds > 3  # for two sets of gradients
    agree(recorder, 90, some_missing)
    assert Recorder.captured <= 2 * kinds + graphs._MOST


def test_a_set_of_gradients_that_comes_once_costs_no_capture() -> None:
    params = parameters()
    optimizer = made(params, interval=1)
    captured = []
    for step in range(20):
        give(params, step, missing=(3,) if step == 10 else ())
        optimizer.step()
        captured.append(Recorder.captured)
    assert captured[9] == captured[10] > 0


def replace_options(optimizer: Jorge, params: list[nn.Parameter], step: int) -> None:
    changes: dict[int, dict[str, Any]] = {20: {"damping": 0.01}, 30: {"eps": 1e-4}, 40: {"weight_decay": 0.0}}
    optimizer.param_groups[0].update(changes.get(step, {}))


def test_an_option_that_changes_is_captured_anew(recorder: pytest.MonkeyPatch) -> None:
    agree(recorder, 55, replace_options)
    assert Recorder.captured > 6


def test_weights_and_states_that_lie_elsewhere_are_captured_anew(recorder: pytest.MonkeyPatch) -> None:
    held: list[Tensor] = []  # so that no address is used again

    def move(optimizer: Jorge, params: list[nn.Parameter], step: int) -> None:
        if step == 25:
            held.extend(p.data for p in params)
            params[0].data = params[0].data.clone()
            params[1].data = params[1].data.to(memory_format=torch.channels_last)
        if step == 50:
            entry = optimizer.state[params[3]]
            held.append(entry["exp_avg"])
            entry["exp_avg"] = entry["exp_avg"].clone()

    agree(recorder, 70, move)
    assert Recorder.captured == 6  # plain and refresh, three times; no damped one, each 21st step, comes twice


def test_a_checkpoint_that_is_loaded_is_gone_on_from(recorder: pytest.MonkeyPatch) -> None:
    saved: list[dict[str, Any]] = []  # with the option, and at last without

    def load(optimizer: Jorge, params: list[nn.Parameter], step: int) -> None:
        if step == 25:
            saved.append(optimizer.state_dict())
        if step == 34:
            optimizer.load_state_dict(saved[-1])

    agree(recorder, 50, load)
    captured = Recorder.captured
    assert captured == 3  # the state takes the values over where it is
    params = parameters()
    other = made(params)
    other.load_state_dict(saved[0])
    for step in range(25):
        give(params, step)
        other.step()
    assert {entry["step"] for entry in other.state.values()} == {50}
    assert Recorder.captured == captured + 2  # none of the damped refresh, which comes once


def test_groups_have_graphs_of_their_own_and_may_be_added(recorder: pytest.MonkeyPatch) -> None:
    def runs(kind: type[Recorder]) -> list[Any]:
        recorder.setitem(graphs.RECORDERS, "cpu", kind)
        params = parameters()
        optimizer = made([{"params": params[:2]}, {"params": params[2:5], "cuda_graphs": False}])
        for step in range(50):
            if step == 15:
                optimizer.add_param_group({"params": params[5:], "weight_decay": 0.0})
            give(params, step)
            optimizer.step()
        return everything(params, optimizer)

    replayed = runs(Recorder)
    assert Recorder.captured == 6  # those of the first group stay
    assert same(replayed, runs(Plain))


def test_released_graphs_hold_nothing_and_are_captured_anew() -> None:
    params = parameters()
    optimizer = made(params)

    def take(steps: range) -> None:
        for step in steps:
            give(params, step)
            optimizer.step()

    take(range(WARMUP + 12))
    (state,) = optimizer._store._groups.values()
    assert state.graphs is not None
    assert [room.shape for rooms in state.graphs.rooms for room in rooms]
    optimizer.release()
    assert [state.graphs.rooms, state.graphs._replays, state.graphs._held] == [[], {}, []]
    captured = Recorder.captured
    take(range(20, 32))
    assert Recorder.captured == captured + 3
    made(params).release()  # before the first step


def test_a_graph_keeps_what_it_reads_and_no_gradient() -> None:
    """Masks and numbers of blocks lie in a cache that forgets; gradients are the caller's."""
    params = parameters()
    optimizer = made(params)
    for step in range(40):
        give(params, step, missing=(0,) if step > 20 else ())
        optimizer.step()
    (state,) = optimizer._store._groups.values()
    assert state.graphs is not None
    inputs = [inputs for held in state.graphs._held for _, inputs in held]  # type: ignore[attr-defined]
    assert any(mask is not None for each in inputs for mask in each.masks)
    assert not any(each.grads for each in inputs)


def test_who_watches_sees_each_step(recorder: pytest.MonkeyPatch) -> None:
    def watch(optimizer: Jorge, params: list[nn.Parameter], step: int) -> None:
        optimizer.trace = seen if 20 <= step < 26 else None

    seen = Trace()
    agree(recorder, 40, watch)
    assert len(seen.steps) == 3 * 6  # with each of three recorders
    assert seen.refreshes


def test_nothing_is_captured_while_the_gap_grows_or_where_there_are_no_graphs(recorder: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = made(params)
    for step in range(WARMUP):
        give(params, step)
        optimizer.step()
    assert Recorder.warmed == 0
    give(params, WARMUP)
    optimizer.step()
    assert Recorder.warmed == 1
    recorder.delitem(graphs.RECORDERS, "cpu")
    with_option, without = parameters(), parameters()
    for mine, flag in ((with_option, True), (without, False)):
        optimizer = made(mine, cuda_graphs=flag)
        for step in range(20):
            give(mine, step)
            optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(with_option, without, strict=True))


@pytest.mark.parametrize("other", [{"capturable": True}, {"compile_step": True}, {"method": "exact"}])
def test_what_it_excludes(other: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"cuda_graphs=True and .* exclude each other"):
        made(parameters(), **other)


def test_a_staggered_schedule_has_at_most_so_many(recorder: pytest.MonkeyPatch) -> None:
    recorder.setattr(graphs, "_MOST", 4)
    agree(recorder, 60, stagger=True, interval=6, warmup_refreshes=0)
    assert Recorder.captured == 4


def test_a_step_of_graphs_starts_few_operators(recorder: pytest.MonkeyPatch) -> None:
    """Outside of the graph, whatever the number of parameters: the check, the count, one copy for each layout."""

    class Silent(Recorder):
        def capture(self, body: Callable[[], None]) -> Callable[[], None]:
            return lambda: None

    recorder.setitem(graphs.RECORDERS, "cpu", Silent)
    found = []
    for copies in (1, 4):
        params = [p for _ in range(copies) for p in parameters()]
        optimizer = made(params)
        for step in range(WARMUP + 24):
            give(params, step)
            optimizer.step()
        found.append(counted(optimizer.step, torch.device("cpu")).launches)
    assert found[0] == found[1] <= 12
