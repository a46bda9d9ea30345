"""Jorge as a `torch.optim.Optimizer`: what a user who replaces SGD or AdamW relies on."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from jorge import Jorge
from jorge.cost.counter import Meter

METHODS = ["whitening", "congruence", "binomial", "exact"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def quadratic(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: int) -> list[float]:
    targets = [torch.linspace(-1, 1, max(1, p.numel()))[: p.numel()].view(p.shape) for p in params]
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.stack([((p.float() - t) ** 2).sum() for p, t in zip(params, targets, strict=True)]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


SHAPES: list[tuple[int, ...]] = [
    (),
    (7,),
    (0, 3),
    (1, 5),
    (8, 5),
    (5, 8),
    (1, 6, 6),
    (6, 4, 3),
    (6, 4, 3, 3),
    (4, 2, 3, 3, 3),
    (40, 30),
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grafting", ["sgd", "adam"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_shape_and_dtype_learns(method: str, grafting: str, dtype: torch.dtype) -> None:
    params = [nn.Parameter(torch.randn(shape).to(dtype)) for shape in SHAPES]
    lr = 0.02 if grafting == "sgd" else 0.05
    optimizer = Jorge(params, lr=lr, method=method, grafting=grafting, block_size=16, max_dim=32)  # type: ignore[arg-type]
    losses = quadratic(optimizer, params, 150)
    assert losses[-1] < 0.05 * losses[0]
    for p in params:
        assert torch.isfinite(p).all()
        buffers = [v for k, v in optimizer.state[p].items() if k.endswith("buffer")]
        assert all(b.dtype == (torch.float64 if dtype == torch.float64 else torch.float32) for b in buffers)


def test_several_dtypes_in_one_group() -> None:
    params = [nn.Parameter(torch.randn(6, 5).to(dtype)) for dtype in DTYPES]
    assert quadratic(Jorge(params, lr=0.02), params, 150)[-1] < 0.2


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(3, 4, 3),
        nn.Conv2d(3, 4, 3),
        nn.Conv3d(2, 3, 2),
        nn.ConvTranspose1d(3, 4, 3),
        nn.ConvTranspose2d(3, 4, 3),
        nn.ConvTranspose3d(2, 3, 2),
        nn.Conv2d(4, 4, 3, groups=4),
    ],
    ids=lambda m: type(m).__name__,
)
def test_convolutions(module: nn.Module) -> None:
    dims = next(module.parameters()).dim() - 2
    channels = module.in_channels
    assert isinstance(channels, int)
    x = torch.randn(4, channels, *(5,) * dims)
    optimizer = Jorge(module.named_parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = (module(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_memory_formats_are_kept_and_do_not_matter() -> None:
    plain = nn.Parameter(torch.randn(8, 6, 3, 3))
    last = nn.Parameter(plain.detach().clone().to(memory_format=torch.channels_last))
    transposed = nn.Parameter(torch.randn(5, 7).T)
    strided = nn.Parameter(torch.randn(8, 10)[:, ::2])
    strides = [p.stride() for p in (last, transposed, strided)]
    first, second = Jorge([plain], lr=0.1), Jorge([last, transposed, strided], lr=0.1)
    for _ in range(5):
        grad = torch.randn(8, 6, 3, 3)
        plain.grad, last.grad = grad, grad.to(memory_format=torch.channels_last)
        transposed.grad, strided.grad = torch.randn(5, 7).T, torch.randn(8, 5)
        first.step()
        second.step()
    assert torch.allclose(plain, last, atol=1e-6)
    assert [p.stride() for p in (last, transposed, strided)] == strides
    assert second.state[last]["exp_avg"].is_contiguous()


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("maximize", [False, True])
def test_vectors_take_sgds_own_step(nesterov: bool, maximize: bool) -> None:
    options: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "nesterov": nesterov, "maximize": maximize}
    mine, theirs = nn.Parameter(torch.ones(9)), nn.Parameter(torch.ones(9))
    optimizers = [Jorge([mine], grafting="sgd", **options), torch.optim.SGD([theirs], **options)]
    for _ in range(6):
        mine.grad = theirs.grad = torch.randn(9)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(mine, theirs, atol=1e-6)


def test_vectors_take_adamws_own_step() -> None:
    mine, theirs = nn.Parameter(torch.ones(9)), nn.Parameter(torch.ones(9))
    optimizers = [
        Jorge([mine], lr=0.1, grafting="adam", betas=(0.8, 0.99), eps=1e-5, weight_decay=0.1),
        torch.optim.AdamW([theirs], lr=0.1, betas=(0.8, 0.99), eps=1e-5, weight_decay=0.1),
    ]
    for _ in range(6):
        mine.grad = theirs.grad = torch.randn(9)
        for optimizer in optimizers:
            optimizer.step()
    assert torch.allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize(("decay", "memory"), [(None, 5), (-0.8, None), (-0.8, 20), (-0.8, 5)])
def test_a_matrix_moves_as_far_as_adam_or_adafactors_memory_would(decay: float | None, memory: int | None) -> None:
    """And a vector as far as Adam would in either case."""
    matrix, vector = nn.Parameter(torch.zeros(6, 8)), nn.Parameter(torch.zeros(9))
    options: dict[str, Any] = {"nesterov": False, "betas": (0.8, 0.95), "eps": 1e-6, "beta2_decay": decay}
    options |= {"graft_norm": "frobenius", "graft_memory": memory}
    least = max(0.05, 1 / memory if memory else 0)
    optimizer = Jorge([matrix, vector], lr=0.1, weight_decay=0, **options)
    moments = {p: [torch.zeros_like(p), torch.zeros_like(p)] for p in (matrix, vector)}
    for t in range(1, 60):  # from step 43 on, 1 - 0.95 is the larger weight
        before = {p: p.detach().clone() for p in moments}
        for p, (m, v) in moments.items():
            p.grad = torch.randn_like(p) * 100 / t
            m.lerp_(p.grad, 0.2)
            own = decay is not None and p is matrix
            v.lerp_(p.grad.square(), max(least, t**-0.8) if own else 0.05)
        optimizer.step()
        for p, (m, v) in moments.items():
            corrected = v if decay is not None and p is matrix else v / (1 - 0.95**t)
            expected = 0.1 * m / (1 - 0.8**t) / (corrected.sqrt() + 1e-6)
            moved = before[p] - p.detach()
            assert torch.isclose(moved.norm(), expected.norm(), rtol=1e-4)
            assert p is matrix or torch.allclose(moved, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_a_matrix_moves_as_far_as_sgd_would(method: str) -> None:
    mine, theirs = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(6, 8))
    optimizers = [Jorge([mine], lr=0.1, method=method, grafting="sgd"), torch.optim.SGD([theirs], lr=0.1, momentum=0.9)]
    for _ in range(8):
        before = mine.detach().clone(), theirs.detach().clone()
        mine.grad = torch.randn(6, 8)
        theirs.grad = mine.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
        assert torch.isclose((mine - before[0]).norm(), (theirs - before[1]).norm(), rtol=1e-4)


def test_weight_decay_is_decoupled_and_for_every_parameter() -> None:
    params = [nn.Parameter(torch.ones(3, 3)), nn.Parameter(torch.ones(3)), nn.Parameter(torch.tensor(1.0))]
    for p in params:
        p.grad = torch.zeros_like(p)
    Jorge(params, lr=0.1, weight_decay=0.5).step()
    assert all(torch.allclose(p, torch.tensor(0.95)) for p in params)


def test_small_decay_reaches_bfloat16_parameters_with_the_update() -> None:
    # 1 − lr·λ rounds to 1 in bfloat16: decay and update must be rounded once, together
    p = nn.Parameter(torch.full((4,), 256.0, dtype=torch.bfloat16))
    optimizer = Jorge([p], lr=1.0, momentum=0.0, weight_decay=0.0035)
    p.grad = torch.full((4,), 0.2, dtype=torch.bfloat16)
    optimizer.step()
    assert (p < 256).all()


def test_gradients_are_never_modified() -> None:
    p, q = nn.Parameter(torch.randn(5, 6)), nn.Parameter(torch.randn(5))
    optimizer = Jorge([p, q], lr=0.1, weight_decay=0.1, maximize=True)
    p.grad, q.grad = torch.randn(5, 6), torch.randn(5)
    kept = p.grad, q.grad
    copies = p.grad.clone(), q.grad.clone()
    optimizer.step()
    assert p.grad is kept[0]
    assert q.grad is kept[1]
    assert torch.equal(p.grad, copies[0])
    assert torch.equal(q.grad, copies[1])


def test_an_expanded_gradient_is_read_right() -> None:
    p = nn.Parameter(torch.randn(4, 3))
    q = nn.Parameter(p.detach().clone())
    p.grad, q.grad = torch.ones(1, 1).expand(4, 3), torch.ones(4, 3)
    Jorge([p], lr=0.1).step()
    Jorge([q], lr=0.1).step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("grafting", ["sgd", "adam"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_non_finite_gradient_poisons_nothing(grafting: str, bad: float) -> None:
    params = [nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))]
    optimizer = Jorge(params, lr=0.01, grafting=grafting, weight_decay=0.1)  # type: ignore[arg-type]
    for step in range(6):
        for p in params:
            p.grad = torch.randn_like(p)
        if step == 4:
            assert params[0].grad is not None
            params[0].grad[1, 1] = bad
        before = [p.detach().clone() for p in params]
        states = [{k: v.clone() for k, v in optimizer.state[p].items() if k != "step"} for p in params if step]
        optimizer.step()
        if step == 4:
            assert all(torch.equal(a, b) for a, b in zip(before, params, strict=True))
            for p, state in zip(params, states, strict=True):
                assert all(torch.equal(value, optimizer.state[p][key]) for key, value in state.items())
        else:
            assert not any(torch.equal(a, b) for a, b in zip(before, params, strict=True))


def test_parameters_without_a_gradient_stay_and_join_later() -> None:
    params = [nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    optimizer = Jorge(params, lr=0.1, weight_decay=0.1)
    params[0].grad = torch.randn(4, 4)
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert [p in optimizer.state for p in params] == [True, False, False]
    for p in params[:2]:
        p.grad = torch.randn(4, 4)
    optimizer.step()
    assert torch.equal(params[2], before[2])
    assert [optimizer.state[p]["step"] for p in params[:2]] == [2, 1]


@pytest.mark.parametrize("grafting", ["sgd", "adam"])
def test_a_missing_gradient_leaves_its_state_alone(grafting: str) -> None:
    """Two equal shapes share a stack: one that gets no gradient behaves as if the other were not there."""
    together = [nn.Parameter(torch.randn(5, 4)) for _ in range(2)]
    alone = nn.Parameter(together[0].detach().clone())
    pair = Jorge(together, lr=0.05, grafting=grafting, weight_decay=0.1)  # type: ignore[arg-type]
    single = Jorge([alone], lr=0.05, grafting=grafting, weight_decay=0.1)  # type: ignore[arg-type]
    for step in range(6):
        grad = torch.randn(5, 4)
        together[0].grad, alone.grad = grad, grad.clone()
        together[1].grad = torch.randn(5, 4) if step in (0, 3) else None
        frozen = together[1].detach().clone()
        pair.step()
        single.step()
        assert torch.allclose(together[0], alone, atol=1e-6)
        assert torch.equal(together[1], frozen) == (step not in (0, 3))


def test_parameters_that_take_turns_are_refreshed_by_their_own_count() -> None:
    """Two equal shapes in one stack, trained in turns, keep the schedule that each would have alone."""
    pair = [nn.Parameter(torch.randn(6, 8)) for _ in range(2)]
    singles = [nn.Parameter(p.detach().clone()) for p in pair]
    options: dict[str, Any] = {"lr": 0.01, "warmup_refreshes": 4, "interval": 3}
    together = Jorge(pair, **options)
    alone = [Jorge([p], **options) for p in singles]
    for step in range(40):
        for i in range(2):
            grad = torch.randn(6, 8) if step == 0 or step % 3 == i else None
            pair[i].grad = grad
            singles[i].grad = None if grad is None else grad.clone()
        together.step()
        for optimizer in alone:
            optimizer.step()
        if step == 20:
            together.load_state_dict(together.state_dict())
    for p, single, optimizer in zip(pair, singles, alone, strict=True):
        mine, theirs = together.state[p], optimizer.state[single]
        assert mine["step"] == theirs["step"] < 20
        assert mine["refreshes.0"] == theirs["refreshes.0"] > 4
        assert torch.allclose(p, single, atol=1e-5)


def test_groups_that_the_caller_edits() -> None:
    params = [nn.Parameter(torch.randn(4, 4)) for _ in range(3)]
    groups: list[dict[str, Any]] = [{"params": params[:2]}, {"params": params[2:]}]
    optimizer = Jorge(groups, lr=0.1)
    for p in params:
        p.grad = torch.randn(4, 4)
    optimizer.step()
    del optimizer.param_groups[0]["params"][1]
    del optimizer.param_groups[1]
    before = [p.detach().clone() for p in params]
    optimizer.step()
    assert [torch.equal(p, old) for p, old in zip(params, before, strict=True)] == [False, True, True]
    assert optimizer.state[params[0]]["step"] == 2


def test_a_low_precision_lr_keeps_the_decay() -> None:
    p = nn.Parameter(torch.ones(4, 4))
    optimizer = Jorge([p], lr=torch.tensor(0.01, dtype=torch.bfloat16), weight_decay=0.1)
    for _ in range(100):
        p.grad = torch.zeros(4, 4)
        optimizer.step()
    assert torch.allclose(p, torch.tensor(0.9048), atol=1e-3)


def test_keys_that_the_caller_adds_survive_a_reload() -> None:
    p = nn.Parameter(torch.randn(4, 4))
    optimizer = Jorge([p], lr=0.1)
    optimizer.param_groups[0]["lr_scale"] = 0.5
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr_scale"] == 0.5


def test_state_that_the_caller_looks_up_or_clears() -> None:
    params = [nn.Parameter(torch.randn(4, 4)) for _ in range(2)]
    optimizer = Jorge(params, lr=0.1, grafting="sgd")
    assert optimizer.state[params[0]] == {}
    for cleared, steps in (([], (1, 1)), (params[:1], (1, 2)), (params, (1, 1))):
        for p in cleared:
            del optimizer.state[p]
        kept = {p: s["momentum_buffer"].clone() for p, s in optimizer.state.items() if s}
        before = [p.detach().clone() for p in params]
        for p in params:
            p.grad = torch.eye(4)
        optimizer.step()
        assert tuple(optimizer.state[p]["step"] for p in params) == steps
        for p, old in zip(params, before, strict=True):
            length = (p - old).norm() / 0.2
            assert torch.isclose(length, torch.tensor(1.9 if p in kept else 1.0), rtol=0.01)


def test_groups_and_options_per_group() -> None:
    a, b, c = (nn.Parameter(torch.randn(6, 6)) for _ in range(3))
    groups: list[dict[str, Any]] = [{"params": [a], "lr": 0.0}, {"params": [b], "method": "exact"}]
    optimizer = Jorge(groups, lr=0.1)
    for p in (a, b):
        p.grad = torch.randn(6, 6)
    before = a.detach().clone()
    optimizer.step()
    assert torch.equal(a, before)
    assert "left_factor.0" in optimizer.state[b]
    optimizer.add_param_group({"params": [c], "grafting": "adam", "interval": 3})
    c.grad = torch.randn(6, 6)
    optimizer.step()
    assert optimizer.state[c]["step"] == 1
    assert optimizer.state[a]["step"] == 2
    assert "exp_avg" in optimizer.state[c]


def test_a_named_group_may_be_added_later() -> None:
    optimizer = Jorge([("a", nn.Parameter(torch.ones(3, 3)))])
    optimizer.add_param_group({"params": [("b", nn.Parameter(torch.ones(3, 2))), ("c", nn.Parameter(torch.ones(2)))]})
    assert [row.name for row in optimizer.plan().rows] == ["a", "b", "c"]


def test_closures_return_the_loss() -> None:
    p = nn.Parameter(torch.ones(3, 3))
    optimizer = Jorge([p], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 9.0
    assert optimizer.step() is None


@pytest.mark.parametrize("lr", [torch.tensor(0.1), torch.tensor([0.1]), torch.tensor(0.1, dtype=torch.float64)])
def test_a_tensor_lr_is_the_float_and_can_be_changed_in_place(lr: Tensor) -> None:
    p, q = nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(5))
    r, s = nn.Parameter(p.detach().clone()), nn.Parameter(q.detach().clone())
    first = Jorge([p, q], lr=lr, weight_decay=0.1, capturable=True)
    second = Jorge([r, s], lr=0.1, weight_decay=0.1)
    for factor in (1.0, 0.5):
        lr.fill_(0.1 * factor)
        second.param_groups[0]["lr"] = 0.1 * factor
        p.grad, q.grad = torch.randn(5, 4), torch.randn(5)
        r.grad, s.grad = p.grad.clone(), q.grad.clone()
        first.step()
        second.step()
    assert torch.allclose(p, r)
    assert torch.allclose(q, s)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.9**t),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2]),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 10),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 10),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=10),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("grafting", ["sgd", "adam"])
def test_torchs_schedulers(name: str, grafting: str) -> None:
    p = nn.Parameter(torch.randn(4, 4))
    optimizer = Jorge([p], lr=0.1, grafting=grafting)  # type: ignore[arg-type]
    scheduler = SCHEDULERS[name](optimizer)
    seen = set()
    for _ in range(6):
        p.grad = torch.randn(4, 4)
        optimizer.step()
        scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
        seen.add(optimizer.param_groups[0]["lr"])
    assert len(seen) > 1
    if name in ("OneCycleLR", "CyclicLR"):
        group = optimizer.param_groups[0]
        assert (group["momentum"] if grafting == "sgd" else group["betas"][0]) != 0.9


def test_hooks_are_called() -> None:
    p = nn.Parameter(torch.randn(4, 4))
    optimizer = Jorge([p], lr=0.1)
    called: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: called.append("step pre"))
    optimizer.register_step_post_hook(lambda *_: called.append("step post"))
    optimizer.register_state_dict_post_hook(lambda *_: called.append("state"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: called.append("load pre"))
    optimizer.register_load_state_dict_post_hook(lambda *_: called.append("load post"))
    p.grad = torch.randn(4, 4)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert called == ["step pre", "step post", "state", "load pre", "load post"]


def test_names_and_repr() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = Jorge(model.named_parameters(), lr=0.1)
    assert optimizer.param_groups[0]["param_names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert [row.name for row in optimizer.plan().rows] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert "method: whitening" in repr(optimizer)
    assert "parameter 1 of group 0" in str(Jorge(model.parameters(), lr=0.1).plan())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("grafting", ["sgd", "adam"])
@pytest.mark.parametrize("capturable", [False, True])
def test_no_step_waits_for_the_device(method: Any, grafting: Any, capturable: bool) -> None:
    params = [nn.Parameter(torch.randn(shape)) for shape in ((20, 6), (6, 20), (6, 20), (9,))]
    lr = torch.tensor(0.01) if capturable else 0.01
    options: dict[str, Any] = {"max_dim": 16, "warmup_refreshes": 3, "capturable": capturable and method != "exact"}
    optimizer = Jorge(params, lr=lr, method=method, grafting=grafting, **options)
    for _ in range(60):  # until refreshes stand for several and are damped
        for p in params:
            p.grad = torch.randn_like(p)
        with Meter() as meter:
            optimizer.step()
        if method != "exact":  # `eigh` reads its error codes back
            assert meter.waits == 0


def test_operators_do_not_grow_with_the_number_of_layers() -> None:
    counts = []
    for layers in (2, 40):
        params = [nn.Parameter(torch.randn(8, 8)) for _ in range(layers)]
        params += [nn.Parameter(torch.randn(8)) for _ in range(layers)]
        optimizer = Jorge(params, lr=0.01, weight_decay=0.1)
        for _ in range(2):
            for p in params:
                p.grad = torch.randn_like(p)
            with Meter() as meter:
                optimizer.step()
        counts.append(meter.total)
    assert counts[0] == counts[1]


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_blocks_are_preconditioned_as_matrices_of_their_own(shape: tuple[int, int]) -> None:
    whole = nn.Parameter(torch.randn(shape))
    optimizer = Jorge([whole], lr=0.1, block_size=10)
    cut = 1 if shape[1] == 20 else 0
    parts = [nn.Parameter(h.detach().clone()) for h in whole.chunk(2, cut)]
    singles = Jorge(parts, lr=0.1, block_size=10)
    for _ in range(5):
        whole.grad = torch.randn(shape)
        for part, grad in zip(parts, whole.grad.chunk(2, cut), strict=True):
            part.grad = grad.clone()
        optimizer.step()
        singles.step()
    for i, part in enumerate(parts):
        for side in ("left", "right"):
            mine, theirs = optimizer.state[whole][f"{side}.0"][i], singles.state[part][f"{side}.0"][0]
            assert torch.allclose(mine, theirs, atol=1e-5)


def test_the_interval_is_kept() -> None:
    p = nn.Parameter(torch.randn(5, 5))
    optimizer = Jorge([p], lr=0.01, interval=4, warmup_refreshes=2)
    refreshed = []
    for step in range(1, 23):
        before = optimizer.state[p]["left.0"].clone() if step > 1 else torch.eye(5)
        p.grad = torch.randn(5, 5)
        optimizer.step()
        if not torch.equal(before, optimizer.state[p]["left.0"]):
            refreshed.append(step)
    assert refreshed == [1, 2, 4, 6, 9, 12, 16, 20]


def test_roots_may_be_bfloat16() -> None:
    start = torch.randn(12, 9), torch.randn(7)
    ours, theirs = ([nn.Parameter(p.clone()) for p in start] for _ in range(2))
    a = Jorge(ours, lr=0.01, grafting="sgd")
    b = Jorge(theirs, lr=0.01, grafting="sgd", preconditioner_dtype=torch.bfloat16)
    for _ in range(40):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        a.step()
        b.step()
    left, right = a.state[ours[0]]["left.0"], b.state[theirs[0]]["left.0"]
    assert right.dtype == torch.bfloat16
    assert torch.nn.functional.cosine_similarity(left.flatten(), right.float().flatten(), dim=0) > 0.998
    assert {b.state[p]["momentum_buffer"].dtype for p in theirs} == {torch.float32}
    assert torch.equal(ours[1], theirs[1])


def test_a_sudden_length_is_followed_over_some_steps() -> None:
    """SGD's length where it is steady or grows slowly; twice the average at most where it jumps; all again without."""
    lengths: dict[float | None, list[float]] = {}
    for limit in (2.0, None):
        p = nn.Parameter(torch.zeros(4, 6))
        optimizer = Jorge([p], lr=1.0, momentum=0.0, grafting="sgd", graft_limit=limit)
        lengths[limit] = []
        for step in range(30):
            grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            p.grad = grad / grad.norm() * (1.05**step if step < 20 else 1000.0) * (step > 2)
            before = p.detach().clone()
            optimizer.step()
            lengths[limit].append(float((p.detach() - before).norm()))
    plain, limited = lengths[None], lengths[2.0]
    assert plain[:20] == pytest.approx(limited[:20], rel=1e-5)
    assert plain[:3] == [0, 0, 0]
    assert plain[25] == pytest.approx(1000, rel=1e-4)
    average = sum(0.9 ** (19 - i) * plain[i] for i in range(3, 20)) / sum(0.9 ** (19 - i) for i in range(3, 20))
    assert limited[20] == pytest.approx(2 * average, rel=1e-4)
    assert limited[20] < limited[21] < limited[29] < 20


def test_the_limit_leaves_vectors_and_who_has_no_gradient_alone() -> None:
    vector, matrix, other = (nn.Parameter(torch.ones(shape)) for shape in ((3,), (3, 3), (3, 3)))
    optimizer = Jorge([vector, matrix, other], lr=1.0, momentum=0.0, grafting="sgd")
    for step in range(4):
        vector.grad, matrix.grad = torch.full((3,), 10.0**step), torch.eye(3)
        other.grad = torch.eye(3) if step == 0 else None
        optimizer.step()
    assert torch.equal(vector.detach(), torch.full((3,), 1.0 - 1111.0))
    assert "graft_length" not in optimizer.state[vector]
    seen = [optimizer.state[p]["graft_length"] for p in (matrix, other)]
    assert torch.allclose(seen[0], torch.tensor([3**0.5, 1.0]) * (1 + 0.9 + 0.81 + 0.729))
    assert torch.allclose(seen[1], torch.tensor([3**0.5, 1.0]))


def test_no_warnings_and_no_random_numbers() -> None:
    p = nn.Parameter(torch.randn(5, 5))
    p.grad = torch.randn(5, 5)
    state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Jorge([p], lr=0.1).step()
    assert torch.equal(state, torch.get_rng_state())


def test_gradient_scaler_and_autocast() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = Jorge(model.named_parameters(), lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    x = torch.randn(32, 6)
    losses = []
    for _ in range(60):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = (model(x).float() - x[:, :1]).square().mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_a_callers_compile_leaves_the_step_alone() -> None:
    """Dynamo would guard on the count of steps and compile each step anew, until it gives up."""
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    weight = nn.Parameter(torch.ones(6, 4))
    optimizer, counter = Jorge([weight], lr=0.1), CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    for _ in range(6):
        weight.grad = torch.eye(6, 4)
        step()
    assert counter.frame_count <= 1
    assert optimizer.state[weight]["step"] == 6


def test_a_process_that_is_started_takes_the_optimizer() -> None:
    weight = nn.Parameter(torch.ones(6, 4))
    optimizer = Jorge([weight], lr=0.1)
    weight.grad = torch.eye(6, 4)
    optimizer.step()
    before = weight.detach().clone()
    process = torch.multiprocessing.get_context("spawn").Process(target=_step_elsewhere, args=(optimizer,))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert not torch.equal(weight, before)  # its memory is shared, as that of any tensor that is given to a process
    optimizer.step()
    assert optimizer.state[weight]["step"] == 2


def _step_elsewhere(optimizer: Jorge) -> None:
    (weight,) = optimizer.param_groups[0]["params"]
    weight.grad = torch.eye(6, 4)
    optimizer.step()
    assert optimizer.state[weight]["step"] == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler's own
def test_it_may_be_built_in_a_compiled_function() -> None:
    weight = nn.Parameter(torch.ones(4, 3))
    Jorge([weight])

    @torch.compile(backend="eager")
    def build() -> Jorge:
        return Jorge([weight], lr=0.01)

    optimizer = build()
    weight.grad = torch.ones(4, 3)
    optimizer.step()
    assert optimizer.state[weight]["step"] == 1
