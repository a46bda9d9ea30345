"""What a step does on CUDA or in a mixed-precision loop, as far as a CPU can tell."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from jorge import Jorge, arrange
from jorge.allocation import Constants
from jorge.arrange import ParamSpec
from jorge.methods import METHODS
from jorge.methods.products import precision_scope
from jorge.options import Options
from jorge.parameters import alike, widened


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((12, 8), (6, 4, 3, 3), (40, 6), (12,))]


def give(params: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grafting", ["sgd", "adam"])
def test_a_step_inside_autocast_is_the_same_step(method: Any, grafting: Any) -> None:
    plain, inside = parameters(), parameters()
    optimizers = [Jorge(params, method=method, grafting=grafting, max_dim=32) for params in (plain, inside)]
    for step in range(4):
        for params, optimizer in zip((plain, inside), optimizers, strict=True):
            give(params, step)
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=params is inside):
                optimizer.step()
                assert torch.is_autocast_enabled("cpu") == (params is inside)
    assert all(torch.equal(p, q) for p, q in zip(plain, inside, strict=True))


def test_a_closure_inside_autocast_stays_there() -> None:
    weight = nn.Parameter(torch.eye(4))
    optimizer = Jorge([weight])

    def closure() -> float:
        loss = (weight @ weight).float().sum()
        assert (weight @ weight).dtype == torch.bfloat16
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert optimizer.step(closure) == 4


@pytest.fixture
def capturing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As in `torch.cuda.graph`."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    return monkeypatch


def test_a_capture_has_to_be_allowed(capturing: pytest.MonkeyPatch) -> None:
    params = parameters()
    give(params, 0)
    with pytest.raises(RuntimeError, match="capturable=True"):
        Jorge(params).step()


def test_what_would_make_the_state_in_a_capture_is_refused(capturing: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = Jorge(params, lr=torch.tensor(0.1), capturable=True)
    give(params, 0)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match="before the capture"):
        optimizer.step()
    assert not optimizer.state
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))
    with capturing.context() as outside:
        outside.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        optimizer.step()
    give(params, 1)
    optimizer.step()
    assert {entry["step"] for entry in optimizer.state.values()} == {2}
    optimizer.state[params[0]]["exp_avg"] = torch.zeros(12, 8)
    with pytest.raises(RuntimeError, match="before the capture"):
        optimizer.step()


@pytest.mark.parametrize("apart", [None, "tf32"])
def test_after_a_step_the_switch_follows_more_general_settings_as_before(apart: str | None) -> None:
    """Those of CUDA can be turned without a device; what a program has set apart stays so."""
    general: Any = torch.backends
    matmul: Any = torch.backends.cuda.matmul
    before = general.fp32_precision, matmul.fp32_precision
    try:
        general.fp32_precision = "ieee"
        matmul.fp32_precision = apart or "none"
        for precision, seen in (("tf32", "tf32"), ("float32", "ieee"), (None, "tf32")):
            with precision_scope(torch.device("cuda"), precision):  # type: ignore[arg-type]
                assert matmul.fp32_precision == seen
            assert matmul.fp32_precision == (apart or "ieee")
        general.fp32_precision = "tf32"
        assert matmul.fp32_precision == (apart or "tf32")
    finally:
        general.fp32_precision, matmul.fp32_precision = before


def test_what_a_graph_reads_stays_where_it_is() -> None:
    """The learning rate, too: torch puts another tensor into the group at a load."""
    params, lr = parameters(), torch.tensor(0.1)
    optimizer = Jorge(params, lr=lr, capturable=True)
    give(params, 0)
    optimizer.step()

    def places() -> list[int]:
        state = [v.data_ptr() for entry in optimizer.state.values() for v in entry.values() if isinstance(v, Tensor)]
        return [optimizer.param_groups[0]["lr"].data_ptr(), *state]

    before, saved = places(), optimizer.state_dict()
    lr.fill_(0.2)
    give(params, 1)
    optimizer.step()
    optimizer.load_state_dict(saved)
    assert places() == before
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr == torch.tensor(0.1)
    lr.fill_(0.0)
    kept = [p.detach().clone() for p in params]
    give(params, 2)
    optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, kept, strict=True))
    for loaded in (0.3, torch.tensor([0.3])):
        lr.fill_(0.7)
        optimizer.load_state_dict(
            Jorge(parameters(), lr=loaded, capturable=True).state_dict() | {"state": saved["state"]}
        )
        assert optimizer.param_groups[0]["lr"] is lr
        assert lr == torch.tensor(0.3)


def test_groups_that_share_a_learning_rate_and_are_to_have_two_get_their_own() -> None:
    first, second = nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(4, 4))
    saved = Jorge([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 1e-3}]).state_dict()
    lr = torch.tensor(0.5)
    optimizer = Jorge([{"params": [first]}, {"params": [second]}], lr=lr)
    optimizer.load_state_dict(saved)
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.1, 1e-3]
    shared = Jorge([{"params": [first]}, {"params": [second]}], lr=lr)
    shared.load_state_dict(Jorge([{"params": [first]}, {"params": [second]}], lr=0.2).state_dict())
    assert all(group["lr"] is lr for group in shared.param_groups)
    assert lr == torch.tensor(0.2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_shape_of_lower_precision_of_which_none_has_a_gradient(dtype: torch.dtype) -> None:
    params = [nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in ((6, 4), (5, 3), (7,))]
    optimizer = Jorge(params, lr=0.1)
    for missing in (None, 0, 1, 2):
        before = [p.detach().clone() for p in params]
        for i, p in enumerate(params):
            p.grad = None if i == missing else torch.randn_like(p)
        optimizer.step()
        assert [torch.equal(p, b) for p, b in zip(params, before, strict=True)] == [i == missing for i in range(3)]


def test_what_a_graph_was_captured_with_is_kept_and_nothing_is_pinned_in_a_capture(
    capturing: pytest.MonkeyPatch,
) -> None:
    """A cache forgets, and every replay reads."""
    constants = Constants(torch.device("cpu"), most=2)
    with pytest.raises(RuntimeError, match="take a step with these before the capture"):
        constants.get((1,))
    with capturing.context() as outside:
        outside.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        made = constants.get((1,))
        constants.get((2,))
    assert constants.get((1,)) is made
    with capturing.context() as outside:
        outside.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        for value in range(3, 9):
            constants.get((value,))
        assert constants.get((1,)) is made
    with pytest.raises(RuntimeError, match="before the capture"):
        constants.get((2,))


def test_a_capture_with_other_gradients_than_any_step_before_is_refused(capturing: pytest.MonkeyPatch) -> None:
    params = parameters()
    optimizer = Jorge(params, lr=torch.tensor(0.1), capturable=True)
    with capturing.context() as outside:
        outside.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        give(params, 0)
        optimizer.step()
    before = [p.detach().clone() for p in params]
    give(params, 1)
    params[0].grad = None
    with pytest.raises(RuntimeError, match="take a step with these before the capture"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(params, before, strict=True))


def test_what_waits_cannot_be_captured() -> None:
    with pytest.raises(ValueError, match="capturable=True and method='exact'"):
        Jorge(parameters(), method="exact", capturable=True)


def test_cuda_has_fewer_pieces() -> None:
    specs = [ParamSpec((256, 2304), torch.float32), ParamSpec((512, 2048), torch.float32)] * 12
    here, there = (arrange.arrange(specs, Options(lr=0.1), on_cuda=on_cuda) for on_cuda in (False, True))
    assert len(there) == 1 < len(here)
    assert all(stack.chunk == stack.count for stack in there[0].stacks)
    small = arrange.arrange(specs * 40, Options(lr=0.1, workspace=0.1), on_cuda=True)
    chunks = sum(-(-stack.count // stack.chunk) for work in small for stack in work.stacks)
    assert 1 < chunks <= 4 + 2 * sum(len(work.stacks) for work in small)


def test_pairs_are_listed_by_layout_and_dtype() -> None:
    rooms = [torch.zeros(4, 3, 2, 2) for _ in range(4)] + [torch.zeros(5, 4, 1, 1)]
    given: list[Tensor] = [torch.ones(4, 3, 2, 2), torch.ones(4, 3, 2, 2, dtype=torch.bfloat16)]
    given += [torch.ones(4, 3, 2, 2).to(memory_format=torch.channels_last), torch.ones(4, 3, 2, 2)]
    given += [torch.ones(5, 4, 1, 1).to(memory_format=torch.channels_last)]  # laid out as a contiguous one
    lists = list(alike(rooms, given))
    assert [len(first) for first, _ in lists] == [3, 1, 1]
    for targets, sources in lists:
        torch._foreach_copy_(targets, sources)
    assert all((room == 1).all() for room in rooms)


def test_widened_keeps_memory_formats() -> None:
    last = torch.randn(4, 3, 2, 2, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    (wide,) = widened([last], torch.float32)
    assert wide.dtype == torch.float32
    assert wide.stride() == last.stride()
    assert torch.equal(wide, last.float())


@pytest.mark.parametrize("method", ["whitening", "congruence", "binomial"])
@pytest.mark.parametrize("spike", [1.0, 100.0, 1e4])
def test_a_spike_in_the_gradient_does_not_turn_roots_that_tf32_refreshes(method: Any, spike: float) -> None:
    """One gradient that is far longer than the others, at step 50: refreshes in TF32 stay at the float64 ones."""
    roots = []
    for dtype, precision in ((torch.float64, None), (torch.float32, "tf32")):
        generator = torch.Generator().manual_seed(0)
        weight = nn.Parameter(torch.zeros(48, 32, dtype=dtype))
        optimizer = Jorge([weight], lr=1e-2, method=method, matmul_precision=precision)  # type: ignore[arg-type]
        rows, columns = (torch.logspace(0, -1.5, d, dtype=torch.float64) for d in weight.shape)
        for step in range(80):
            grad = torch.randn(48, 32, generator=generator, dtype=torch.float64) * columns
            weight.grad = (1e-3 * grad * (spike if step == 50 else rows[:, None])).to(dtype)
            optimizer.step()
        roots.append([optimizer.state[weight][name].double() for name in ("left.0", "right.0")])
    for exact, near in zip(*roots, strict=True):
        assert (near - exact).norm() < 4e-3 * exact.norm()


def on_cuda(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    """Parameters that say that they are on a CUDA device, without memory."""
    with FakeTensorMode():
        return [nn.Parameter(torch.empty(shape, device="cuda")) for shape in shapes]


def test_blocks_by_device_are_said_in_the_group() -> None:
    there, here = on_cuda((1024, 768), (12,)), nn.Parameter(torch.zeros(1024, 768))
    groups: list[dict[str, Any]] = [{"params": there}, {"params": [here]}]
    optimizer = Jorge([*groups, {"params": on_cuda((600, 4)), "block_size": 64}])
    assert [group["block_size"] for group in optimizer.param_groups] == [256, "auto", 64]
    assert [row.blocks for row in optimizer.plan().rows[:3]] == [((12, 256, 256),), (), ((48, 128, 128),)]
    optimizer.add_param_group({"params": on_cuda((300, 300))})
    optimizer.add_param_group({"params": on_cuda((300, 300)), "block_size": None})
    assert [group["block_size"] for group in optimizer.param_groups[3:]] == [256, None]
    assert optimizer.defaults["block_size"] == "auto"
    mixed = Jorge([*there, here])
    assert mixed.param_groups[0]["block_size"] == "auto"


@pytest.mark.parametrize(("saved", "own", "remarks"), [(256, "auto", 0), ("auto", "auto", 0), (128, "auto", 1)])
def test_a_checkpoint_goes_on_with_the_blocks_of_its_device(
    saved: Any, own: Any, remarks: int, recwarn: pytest.WarningsRecorder
) -> None:
    """As it was saved on CUDA, where `"auto"` has become 256."""
    params = [nn.Parameter(torch.randn(300, 40)) for _ in range(2)]
    theirs, mine = (Jorge([p], block_size=size) for p, size in zip(params, (saved, own), strict=True))
    params[0].grad = params[1].grad = torch.randn(300, 40)
    theirs.step()
    with torch.no_grad():
        params[1].copy_(params[0])
    mine.load_state_dict(theirs.state_dict())
    assert len([w for w in recwarn if "other options" in str(w.message)]) == remarks
    assert mine.param_groups[0]["block_size"] == saved
    theirs.step()
    mine.step()
    assert torch.equal(*params)
