"""Rules of a step that only show where something unusual comes together: each by a case of its own."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from jorge import Jorge, arrange
from jorge.allocation import Constants
from jorge.arrange import ParamSpec
from jorge.blocks import automatic, matrix_shape, split
from jorge.compiling import CompiledSteps
from jorge.grafting import ratios
from jorge.methods import METHODS, Refresh, State, binomial
from jorge.methods.products import multiply
from jorge.methods.whitening import whiten
from jorge.options import Options
from jorge.schedule import Schedule, pieces
from jorge.stacking import Blocks, refresh_blocks
from jorge.trace import Trace
from jorge.transfer import SCHEDULES, lr_factor


def parameters(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in shapes]


def train(optimizer: Jorge, params: list[nn.Parameter], steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype)
        optimizer.step()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1])
def test_a_gradient_that_is_not_finite_freezes_every_group_of_its_device(bad: float, where: int) -> None:
    params = parameters((6, 4), (5, 3), (7,))
    groups: list[dict[str, Any]] = [{"params": params[:1], "grafting": "sgd"}, {"params": params[1:]}]
    optimizer = Jorge(groups, lr=0.05, weight_decay=0.1)
    train(optimizer, params, 3)
    before = [p.detach().clone() for p in params]
    states = [{k: v.clone() for k, v in optimizer.state[p].items() if k != "step"} for p in params]
    for p in params:
        p.grad = torch.ones_like(p)
    grad = params[where].grad
    assert grad is not None
    grad[0] = bad
    optimizer.step()
    assert all(torch.equal(p, old) for p, old in zip(params, before, strict=True))
    for p, state in zip(params, states, strict=True):
        assert all(torch.equal(value, optimizer.state[p][key]) for key, value in state.items())
        assert optimizer.state[p]["step"] == 4
    train(optimizer, params, 1)
    assert not any(torch.equal(p, old) for p, old in zip(params, before, strict=True))


def test_a_gradient_whose_length_overflows_is_not_taken() -> None:
    params = parameters((6, 4), (5,), dtype=torch.float32)
    optimizer = Jorge(params, lr=1e-20, grafting="sgd")
    for length, taken in ((1e18, True), (3e19, False), (1e18, True)):
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.full_like(p, length)
        optimizer.step()
        assert [not torch.equal(p, old) for p, old in zip(params, before, strict=True)] == [taken, taken]


@pytest.mark.parametrize("method", ["whitening", "congruence", "binomial"])
def test_the_first_precision_is_the_refreshs_and_the_second_the_directions(method: Any) -> None:
    ends = {}
    for pair in (("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")):
        params = parameters((16, 12), (12, 12), dtype=torch.float32)
        optimizer = Jorge(params, lr=0.05, method=method, matmul_precision=pair)
        train(optimizer, params, 4)
        ends[pair] = (params, [optimizer.state[p]["left.0"].clone() for p in params])
    (plain, roots), (_, coarse_roots), (coarse, same_roots) = ends.values()
    assert all(torch.equal(a, b) for a, b in zip(roots, same_roots, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(roots, coarse_roots, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(plain, coarse, strict=True))


@pytest.mark.parametrize("absent", [False, True])
@pytest.mark.parametrize("method", ["whitening", "exact"])
def test_blocks_that_are_refreshed_a_few_at_a_time_are_as_all_at_once(
    method: Any, absent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for few in (False, True):
        if few:
            monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
            monkeypatch.setattr(arrange, "_PIECES", 1e9)
        params = parameters((20, 8), (8, 20), (12, 8), (8, 8))
        options: dict[str, Any] = {"method": method, "block_size": 4, "interval": 2, "warmup_refreshes": 2}
        options["workspace"] = 1e-3 if few else None
        specs = [ParamSpec(tuple(p.shape), p.dtype) for p in params]
        chunks = {s.chunk for w in arrange.arrange(specs, Options(lr=0.1, **options)) for s in w.stacks}
        assert (chunks == {1}) == few
        optimizer = Jorge(params, lr=0.05, **options)
        for step in range(9):
            train(optimizer, params, 1, seed=step)
            if absent:
                params[step % 3].grad = None
                optimizer.step()
        ends.append((params, [optimizer.state[p] for p in params]))
    (some, states), (others, others_states) = ends
    assert all(torch.allclose(p, q, rtol=1e-9) for p, q in zip(some, others, strict=True))
    for state, other in zip(states, others_states, strict=True):
        assert all(torch.allclose(state[k], other[k], rtol=1e-8) for k in state if k != "step")


@pytest.mark.parametrize("workspace", [None, 6.0, 2.0, 1e-3])
def test_stacks_are_refreshed_together_as_far_as_the_memory_goes(
    workspace: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block once, and no more at a time than the memory holds, or one block."""
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    monkeypatch.setattr(arrange, "_PIECES", 1e9)
    params = parameters((40, 12), (12, 40), (12, 8), (8, 8), (30, 4))
    options: dict[str, Any] = {"block_size": 8, "workspace": workspace}
    specs = [ParamSpec(tuple(p.shape), p.dtype) for p in params]
    works = arrange.arrange(specs, Options(lr=0.1, **options))
    rooms: dict[tuple[int, ...], float] = {stack.shape: stack.room for work in works for stack in work.stacks}
    seen: list[list[tuple[tuple[int, ...], int]]] = []

    def refresh(method: Any, some: Sequence[Blocks], *rest: Any) -> None:
        seen.append([(tuple(each.grads.shape[1:]), len(each.grads[each.where])) for each in some])
        refresh_blocks(method, some, *rest)

    monkeypatch.setattr("jorge.step.refresh_blocks", refresh)
    train(Jorge(params, lr=0.05, **options), params, 1)
    counts: Counter[tuple[int, ...]] = Counter()
    for batch in seen:
        assert sum(count / rooms[shape] for shape, count in batch) <= 1 + 1e-9 or [n for _, n in batch] == [1]
        for shape, count in batch:
            counts[shape] += count
    wanted: Counter[tuple[int, ...]] = Counter()
    for work in works:
        for stack in work.stacks:
            wanted[stack.shape] += stack.count
    assert counts == wanted
    assert (len(seen) == 1) == (workspace is None)
    assert (len(seen) == counts.total()) == (workspace == 1e-3)


def test_statistics_of_the_exact_method_are_symmetric_to_the_bit() -> None:
    (p,) = parameters((67, 129))
    optimizer = Jorge([p], lr=0.05, method="exact")
    train(optimizer, [p], 6)
    for name in ("left_factor.0", "right_factor.0"):
        factor = optimizer.state[p][name]
        assert torch.equal(factor, factor.mT)


@pytest.mark.parametrize("shape", [(6, 6), (24, 4)])
def test_the_damping_of_a_refresh_is_applied_at_its_first_substep(shape: tuple[int, int]) -> None:
    grad = torch.randn(1, *shape, dtype=torch.float64)
    roots = [torch.eye(d, dtype=torch.float64)[None] for d in shape]
    k = torch.full((1,), 20.0, dtype=torch.float64)
    options: dict[str, Any] = {"beta2": 0.95, "damping": 1e-2}

    def after(state: State, substeps: int, damping_refreshes: int) -> State:
        (new,) = whiten([state], [grad], substeps=substeps, damping_refreshes=damping_refreshes, **options)
        return new | {"refreshes": k}

    start = {"left": roots[0], "right": roots[1], "refreshes": k}
    both = after(start, 2, 3)
    one_by_one = after(after(start, 1, 6), 1, 0)
    for side in ("left", "right"):
        assert torch.allclose(both[side], one_by_one[side], rtol=1e-12)


def test_a_tensor_lr_of_low_precision_is_read_and_not_calculated_with() -> None:
    """`1 − lr·λ` in bfloat16 would be 1."""
    lr = torch.tensor(0.01, dtype=torch.bfloat16)
    params, plain = parameters((4, 3), (5,)), parameters((4, 3), (5,))
    optimizer, other = Jorge(params, lr=lr, weight_decay=0.1), Jorge(plain, lr=float(lr), weight_decay=0.1)
    train(optimizer, params, 6)
    train(other, plain, 6)
    assert all(torch.allclose(p, q, rtol=1e-12) for p, q in zip(params, plain, strict=True))


def test_a_parameter_of_low_precision_is_rounded_once_a_step() -> None:
    """Decay and update together: the float32 result, rounded."""
    start = 1 + torch.arange(64, dtype=torch.float32) / 128
    p = nn.Parameter(start.bfloat16())
    optimizer = Jorge([p], lr=0.01, momentum=0.0, weight_decay=0.3, grafting="sgd")
    p.grad = torch.linspace(0.1, 0.9, 64).bfloat16()
    expected = (p.detach().float() * (1 - 0.01 * 0.3) - 0.01 * p.grad.float()).bfloat16()
    optimizer.step()
    assert torch.equal(p, expected)


@pytest.mark.parametrize("count", [1, 2, 7, 10, 60, 97])
@pytest.mark.parametrize("gap", [2, 3, 7, 10])
def test_the_parts_of_a_staggered_refresh_are_all_blocks_once(count: int, gap: int) -> None:
    """However the work of the stacks divides, and rounding falls."""
    shapes = [(d, d + 1) for d in range(2, 2 + count)]
    specs = [ParamSpec(shape, torch.float32) for shape in shapes for _ in range(1 + shape[0] % 3)]
    options = Options(lr=0.1, interval=gap, warmup_refreshes=0, stagger=True)
    (work,) = arrange.arrange(specs, options)
    schedule, most = Schedule(gap, 0, stagger=True), 0.0
    method = METHODS["whitening"]
    cost = [method.refresh_flops(stack.shape, stack.sides, options, Refresh()) for stack in work.stacks]
    seen = [[0] * stack.count for stack in work.stacks]
    for step in range(1, gap + 1):
        done = 0
        for stack, blocks, each in zip(work.stacks, seen, cost, strict=True):
            for piece in pieces(stack, work.matrices, [step] * len(specs), schedule, method, step):
                done += each * (piece.stop - piece.start)
                for i in range(piece.start, piece.stop):
                    blocks[i] += 1
        most = max(most, done)
    assert all(times == 1 for blocks in seen for times in blocks)
    total = sum(each * len(blocks) for each, blocks in zip(cost, seen, strict=True))
    assert most <= total / gap + max(cost), "no step has more than its share and a block"


def test_refreshes_that_do_the_same_look_the_same() -> None:
    """In the form that damps as it goes there is no refresh for several: another would be a graph of its own."""
    for shape, apart in (((12, 12), False), ((24, 4), True)):
        (work,) = arrange.arrange([ParamSpec(shape, torch.float32)], Options(lr=0.1, method="congruence"))
        (stack,) = work.stacks
        found = [
            pieces(stack, work.matrices, [t], Schedule(1, 0), METHODS["congruence"], t)[0].refresh.damping
            for t in range(11, 25)
        ]
        assert sum(found) == (14 if apart else 0)


def test_a_compiled_step_is_one_work_set_whatever_the_workspace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrange, "SMALLEST_WORKSPACE", 0)
    specs = [ParamSpec((d, 8), torch.float32) for d in range(4, 24)]
    assert len(arrange.arrange(specs, Options(lr=0.1, workspace=0.1))) > 3
    assert len(arrange.arrange(specs, Options(lr=0.1, workspace=0.1, compile_step=True))) == 1


def test_the_numbers_of_a_compiled_step_are_those_of_the_group() -> None:
    compiled = CompiledSteps(torch.device("cpu"), torch.float64)
    scalars = compiled.scalars
    lr = torch.tensor([0.3])
    for options in (
        Options(lr=0.1, momentum=0.8, weight_decay=0.2, betas=(0.7, 0.95)),
        Options(lr=0.2, momentum=0.8, weight_decay=0.1, betas=(0.7, 0.9)),
        Options(lr=lr, momentum=0.6, betas=(0.5, 0.9)),
        Options(lr=0.2, momentum=0.6, weight_decay=0.1, betas=(0.5, 0.9)),
    ):
        found = scalars.options(options)
        for value, wanted in (
            *((found.lr, options.lr), (found.momentum, options.momentum), (found.weight_decay, options.weight_decay)),
            *zip(found.betas, options.betas, strict=True),
        ):
            assert float(value) == pytest.approx(float(wanted), rel=1e-7)
        assert all(isinstance(v, torch.Tensor) and v.dtype == torch.float64 for v in (found.lr, *found.betas))
        assert isinstance(found.weight_decay, torch.Tensor) == (options.weight_decay != 0)
    lr.fill_(0.4)
    assert float(scalars.options(Options(lr=lr)).lr) == pytest.approx(0.4, rel=1e-7)
    for weight in (1.0, 3.0, 1.0):
        refresh = compiled.refresh(Refresh(1, weight, 7))
        assert isinstance(refresh.weight, torch.Tensor)
        assert (float(refresh.weight), refresh.substeps, refresh.damping) == (weight, 1, 7)


def test_compiled_numbers_are_as_exact_as_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledSteps, "step", lambda self, number, plain: plain)
    ends = []
    for fused in (False, True):
        params = parameters((6, 4), (5,))
        optimizer = Jorge(params, lr=0.1, momentum=0.7, weight_decay=0.3, compile_step=fused)
        train(optimizer, params, 5)
        ends.append(params)
    assert all(torch.allclose(p, q, rtol=1e-12, atol=1e-14) for p, q in zip(*ends, strict=True))


def test_constants_that_are_in_use_stay() -> None:
    kept = Constants(torch.device("cpu"), most=2)
    first = kept.get((1,))
    for i in range(2, 9):
        made = kept.get((i,))
        assert kept.get((i,)) is made
        assert kept.get((1,)) is first


def test_a_switch_of_precision_is_turned_back() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision  # type: ignore[attr-defined]
    assert before != "bf16", "an earlier step left it on"
    params = parameters((6, 4), dtype=torch.float32)
    train(Jorge(params, lr=0.05, matmul_precision="bfloat16"), params, 2)
    assert torch.backends.mkldnn.matmul.fp32_precision == before  # type: ignore[attr-defined]


def test_rounding_to_tf32_keeps_what_is_not_finite() -> None:
    bad = torch.tensor([[[torch.inf, -torch.inf], [torch.nan, 1.0]]])
    found = multiply(bad, torch.eye(2)[None], "tf32")
    assert found.isnan().sum() == 4  # as in float32: each row has one that is not finite, times zero
    assert torch.equal(multiply(bad[..., 1:, 1:], torch.ones(1, 1, 1), "tf32"), torch.ones(1, 1, 1))
    assert multiply(torch.full((1, 1, 1), torch.inf), torch.ones(1, 1, 1), "tf32").isinf().all()
    for bits in (0x7F800001, -1):  # NaNs whose last bits would carry into the others
        odd = torch.tensor([[[bits]]], dtype=torch.int32).view(torch.float32)
        assert multiply(odd, torch.ones(1, 1, 1), "tf32").isnan().all()


def test_a_binomial_series_that_overflows_keeps_the_root() -> None:
    root = torch.eye(5)[None]
    for narrow in (False, True):
        assert torch.equal(binomial.refresh_root(root, torch.full((1, 5, 2), 1e25), narrow=narrow), root)


def test_what_a_cap_cuts_short_is_told() -> None:
    """Congruence gives a gradient that is suddenly large what its polynomial covers, and whitening one of rank one."""
    grads = list(torch.randn(31, 1, 80, 80, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    sudden = {"congruence": 1e4 * grads[0], "whitening": grads[0][:, :, :1] @ grads[0][:, :1, :]}
    for name, last in sudden.items():
        method, trace = METHODS[name], Trace()
        state = method.initial(1, (80, 80), ("full", "full"), dtype=torch.float64)
        for i, grad in enumerate([*grads[1:], last]):
            refresh_blocks(method, [Blocks(state, grad, slice(None))], Options(lr=0.1), method.refresh_at(i, 1), trace)
        first, usual, cut = trace.refreshes[0], trace.refreshes[-2], trace.refreshes[-1]
        assert not any(bool(short) for short in usual.capped.values())
        assert all(bool(short) for short in cut.capped.values())
        assert all(float(share) == pytest.approx(0.05, rel=1e-6) for share in usual.shares.values())
        assert all(float(share) < 0.049 for share in cut.shares.values())
        if name == "whitening":  # the first asks for all that there is, which is no cut
            assert not any(bool(short) for short in first.capped.values())


@pytest.mark.parametrize("step", [float("nan"), -1, "7", None, True, 2.5], ids=str)
def test_a_saved_step_that_is_no_count_is_refused(step: Any) -> None:
    params = parameters((6, 4), (5,))
    optimizer = Jorge([("w", params[0]), ("b", params[1])], lr=0.05)
    train(optimizer, params, 3)
    saved = optimizer.state_dict()
    saved["state"][1]["step"] = step
    with pytest.raises(ValueError, match="step of b"):
        optimizer.load_state_dict(saved)
    assert [optimizer.state[p]["step"] for p in params] == [3, 3]
    optimizer.state[params[0]]["step"] = step
    with pytest.raises(RuntimeError, match="step of w"):
        train(optimizer, params, 1)


def test_a_checkpoint_that_lacks_an_option_leaves_the_groups_own() -> None:
    params = parameters((6, 4))
    optimizer = Jorge([{"params": params, "interval": 7}], lr=0.05)
    train(optimizer, params, 1)
    saved = optimizer.state_dict()
    del saved["param_groups"][0]["interval"]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["interval"] == 7


def test_a_tensor_lr_that_is_changed_for_one_of_two_elements_is_refused() -> None:
    params = parameters((6, 4))
    optimizer = Jorge(params, lr=torch.tensor(0.05))
    train(optimizer, params, 1)
    optimizer.param_groups[0]["lr"] = torch.tensor([0.05, 0.1])
    with pytest.raises(ValueError, match=r"param group 0: lr must be .* one such element"):
        train(optimizer, params, 1)


def test_schedules_end_where_they_end() -> None:
    step, cosine = (lr_factor(name, total_steps=9) for name in SCHEDULES if name != "keep")
    assert [round(step(t), 6) for t in (8, 9, 12, 100)] == [0.01] * 4
    assert [cosine(t) for t in (9, 12, 30)] == [0.0] * 3


def test_a_tensor_lr_of_a_recipe_is_not_shared() -> None:
    lr = torch.tensor(0.1)
    (weight,) = parameters((4, 4))
    optimizer, _ = Jorge.from_sgd(torch.optim.SGD([weight], lr=lr), schedule="keep")
    lr.fill_(5.0)
    assert float(optimizer.param_groups[0]["lr"]) == pytest.approx(0.1)


def test_how_shapes_are_read_and_cut() -> None:
    assert split(7, 3) == [3, 2, 2]
    assert matrix_shape((8, 2, 14)) == (8, 28)  # 16 × 14 is squarer, by less than four times
    assert matrix_shape((4, 4, 12)) == (16, 12)
    assert automatic((300, 1000)) == (100, 125)
    assert automatic((760, 64)) == (127, 64)  # eight equal parts would be a third more than six


def test_a_norm_of_squares_that_underflowed_makes_no_long_step() -> None:
    found = ratios(torch.tensor([1e-30, 0.0, torch.nan, 4.0]), torch.ones(4))
    assert found[:2].tolist() == pytest.approx([torch.finfo(torch.float32).tiny ** -0.5] * 2)
    assert found[2:].tolist() == [0, 0.25]


@pytest.mark.parametrize("seed", [0, 1])
def test_shampoo_trains_with_factors_in_bfloat16_as_with_float32(seed: int) -> None:
    """Its root's floor is that of the storage's rounding: with float32's the loss ends 1.4 times as high here."""

    def last(dtype: torch.dtype | None) -> float:
        torch.manual_seed(seed)
        teacher, model = (nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64)) for _ in range(2))
        x = torch.randn(256, 64)
        y = teacher(x).detach()
        optimizer = Jorge(model.parameters(), lr=3e-3, method="exact", preconditioner_dtype=dtype)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, total_iters=128)
        loss = torch.tensor(0.0)
        for _ in range(128):
            optimizer.zero_grad()
            loss = (model(x) - y).square().mean()
            loss.backward()
            optimizer.step()
            scheduler.step()
        return loss.item()

    assert last(torch.bfloat16) == pytest.approx(last(None), rel=0.05)
