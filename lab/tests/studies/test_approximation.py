"""What the ablation `error` measures, on gradients of known spectra and on a task of a second."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge
from jorge.methods import METHODS
from jorge.methods.exact import inverse_root
from jorge.options import Options
from jorge.trace import Trace
from jorge_lab.studies.approximation import (
    BLOCKS,
    MEASURES,
    OPTIMIZERS,
    POINTS,
    SINGULAR,
    Followed,
    distance,
    follow,
    followed,
)
from jorge_lab.studies.approximation_page import chapters as chapters_of
from jorge_lab.studies.approximation_page import page, picture, values
from jorge_lab.studies.oracles import Oracle
from jorge_lab.tasks.task import Batch
from lab.tests.tiny import Images, Tokens, tiny


def gradients(count: int, m: int = 24, n: int = 32, condition: float = 10.0) -> list[Tensor]:
    """Gaussian gradients `[m, n]` whose rows have this condition number."""
    scales = torch.logspace(0, -math.log10(condition), m)[:, None]
    turn = torch.linalg.qr(torch.randn(m, m))[0]
    return [turn @ (scales * torch.randn(m, n)) for _ in range(count)]


def trained(method: Any, grads: list[Tensor], **options: Any) -> tuple[Followed, dict[str, Any]]:
    """A block that has followed an optimizer on these gradients, and the parameter's state."""
    weight = nn.Parameter(torch.zeros_like(grads[0]))
    optimizer = Jorge([("weight", weight)], lr=1e-3, method=method, **{"interval": 1, **options})
    (block,) = followed(optimizer)
    for grad in grads:
        weight.grad, optimizer.trace = grad, Trace()
        optimizer.step()
        block.after(optimizer.state[weight], optimizer.trace)
    return block, optimizer.state[weight]


def measured(method: str, grads: list[Tensor], **options: Any) -> dict[str, list[float]]:
    block, state = trained(method, grads, **options)
    return {name: pair for name, pair in block.measure(state).items() if pair is not None}


def test_the_exact_root_is_near_itself() -> None:
    found = measured("exact", gradients(60))
    assert max(found["own_error"]) < 3e-6
    assert found["own_error"] == found["shampoo_error"] == pytest.approx(found["rounding"])
    assert found["asymmetry"] == [0, 0]
    assert found["memory"] == [pytest.approx(20, rel=0.05)] * 2
    assert "cut" not in found


def test_congruence_is_near_the_exact_root() -> None:
    found = measured("congruence", gradients(60))
    assert min(found["own_cosine"]) > 0.98
    assert min(found["shampoo_cosine"]) > 0.98
    assert max(found["own_error"]) > 1e-4, "it has a polynomial"
    assert found["asymmetry"] == [0, 0]
    assert found["cut"][0] < 0.5


def test_binomial_loses_its_symmetry_and_says_what_it_remembers() -> None:
    grads = gradients(60)
    found = measured("binomial", grads)
    assert min(found["asymmetry"]) > 1e-3
    assert min(found["own_cosine"]) > 0.9
    assert "cut" not in found
    # at the start L⁴GGᵀ = GGᵀ/(tr(GGᵀ)/m), of the norm ν, and β2 = ν/(1+ν)
    block, _ = trained("binomial", grads[:1])
    for side, g in enumerate((grads[0].double(), grads[0].double().mT)):
        gram = g @ g.mT
        nu = float(gram.norm() / (gram.trace() / len(gram)))
        assert block.oracle.memory.refreshes[side] == pytest.approx(1 + nu, rel=1e-6)


def test_whitening_is_near_kl_shampoo_and_whitens() -> None:
    grads = gradients(100, condition=100)
    found = measured("whitening", grads)
    assert 1e-3 < max(found["own_error"]) < 0.06, "it has a polynomial"
    assert min(found["own_cosine"]) > 0.998
    assert 0.98 < found["direction"][0] == found["direction"][1] < 1
    assert found["asymmetry"] == [0, 0]
    assert "shampoo_error" not in found
    assert found["condition"][0] < found["raw_condition"][0] / 100
    assert found["whiteness"][0] > 2 * found["raw_whiteness"][0]
    assert found["memory"] == [pytest.approx(20), pytest.approx(20)]


def test_roots_in_bfloat16_are_further_off() -> None:
    grads = gradients(40)
    coarse = measured("whitening", grads, preconditioner_dtype=torch.bfloat16)
    assert min(coarse["rounding"]) > 100 * max(measured("whitening", grads)["rounding"])


@pytest.mark.parametrize(
    ("method", "last", "cut"),
    [
        ("congruence", "larger", True),
        ("whitening", "larger", False),  # it is scale-free
        ("whitening", "rank 1", True),
    ],
)
def test_what_the_cap_cuts_short(method: str, last: str, cut: bool) -> None:
    grads = gradients(60, 96, 96)
    rank_1 = torch.outer(grads[0][:, 0], grads[0][0])
    final = 1e3 * grads[0] if last == "larger" else rank_1 * grads[0].norm() / rank_1.norm()
    earlier, _ = trained(method, grads)
    block, _ = trained(method, [*grads, final])
    assert not earlier.oracle.memory.cut
    assert list(earlier.oracle.memory.refreshes) == pytest.approx([20, 20])
    assert block.oracle.memory.cut == cut
    assert block.oracle.cuts == earlier.oracle.cuts + cut
    assert (max(block.oracle.memory.refreshes) > 21) == cut


@pytest.mark.parametrize("method", METHODS)
def test_the_interval_and_gradients_of_zero_are_followed(method: str) -> None:
    grads = gradients(30)
    grads[7] = torch.zeros_like(grads[7])
    block, state = trained(method, grads, interval=5, warmup_refreshes=10)
    assert block.oracle.refreshes == int(state["refreshes.0"]) == 9 + 10
    assert max(block.measure(state)["own_error"] or [1]) < 0.3
    assert 0 < max(block.measure(state)["rounding"] or [1]) < 1e-5


def test_dead_rows_have_a_null_space() -> None:
    grads = gradients(40)
    for grad in grads:
        grad[:4] = 0
    found = measured("whitening", grads)
    assert found["raw_condition"][0] == SINGULAR > found["raw_condition"][1]


def test_a_block_of_several_is_its_own() -> None:
    """The block's gradient and roots are those of the same rows and columns, also where the stack lies transposed."""
    torch.manual_seed(1)
    params = [(f"p{i}", nn.Parameter(torch.zeros(shape))) for i, shape in enumerate([(40, 70), (30, 20), (20, 30)])]
    optimizer = Jorge(params, lr=0.1, method="exact", block_size=32, interval=1)
    blocks = followed(optimizer)
    assert [b.described["name"] for b in blocks] == ["p1", "p2", "p0"]
    for _ in range(3):
        for _, p in params:
            p.grad = torch.randn_like(p)
        optimizer.trace = Trace()
        optimizer.step()
        for block in blocks:
            block.after(optimizer.state[block.param], optimizer.trace)
    for block in blocks:
        assert max(block.measure(optimizer.state[block.param])["own_error"] or [1]) < 1e-3
        assert block.gradient().shape == block.grid.shape


def test_distance() -> None:
    a = torch.diag(torch.tensor([3.0, 4.0], dtype=torch.float64))
    assert list(distance(7 * a, a)) == pytest.approx([0, 1], abs=1e-12)
    error, cosine = distance(torch.eye(2, dtype=torch.float64), a)
    assert cosine == pytest.approx(7 / (5 * math.sqrt(2)))
    assert error == pytest.approx(math.sqrt(1 - cosine**2))


def test_shampoos_root_is_that_of_the_moment() -> None:
    method, options = METHODS["exact"], Options(lr=0.1, preconditioner_beta2=0.9)
    oracle = Oracle(method, options, (24, 32), torch.device("cpu"))
    grads = [g.double() for g in gradients(5)]
    for i, grad in enumerate(grads):
        oracle.refresh(grad, method.refresh_at(i, 1), {"left": 0.5, "right": 0.5}, None)
    moment = sum((0.1 * 0.9 ** (4 - i) * g @ g.mT for i, g in enumerate(grads)), torch.zeros(24, 24).double())
    assert distance(oracle.shampoo()["left"], inverse_root(moment[None], eps=1e-6)[0])[0] < 1e-10


def test_a_model_without_matrices_is_refused() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6))

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        return next(model.parameters()).square().sum()

    task = dataclasses.replace(tiny(Images), model=Scale, loss=loss)
    with pytest.raises(ValueError, match="two full sides"):
        follow(task, "jorge", 0, 2, task.load())
    with pytest.raises(ValueError, match="no method of ours"):
        follow(tiny(Images), "sgd", 0, 2, task.load())


@pytest.mark.parametrize("model", [Images, Tokens])
def test_a_run_measures_everything_over_training(model: type[nn.Module]) -> None:
    task = tiny(model)
    records = [follow(task, name, 0, 40, task.load()) for name in OPTIMIZERS]
    for record in records:
        steps = [point["step"] for point in record["points"]]
        assert steps == list(range(2, 41, 2))
        assert len(steps) == POINTS
        assert 1 <= len(record["blocks"]) <= BLOCKS
        assert record["points"][-1]["loss"] < record["points"][0]["loss"]
        for block in record["points"][-1]["blocks"]:
            assert list(block) == list(MEASURES)
            assert all(math.isfinite(x) for pair in block.values() if pair for x in pair)
    text = page("jorge ablate error", records, "")
    assert text.count("| Shampoo |") == 2
    (chapter,) = chapters_of(records)
    assert picture(chapter).count("<path") > 30
    assert len(values(records, 0, "memory")) == sum(2 * len(record["blocks"]) for record in records)
    assert values(records, POINTS, "memory") == []


def test_a_run_that_diverges_ends_and_is_shown() -> None:
    task = tiny(Images)
    wild = dataclasses.replace(task, recipe=dataclasses.replace(task.recipe, sgd={"lr": 1e30, "momentum": 0.9}))
    records = [follow(wild, name, 0, 40, task.load()) for name in OPTIMIZERS]
    assert all(record["diverged_at"] for record in records)
    assert "diverged at step" in page("jorge ablate error", records, "")
    assert picture(chapters_of(records)[0]).startswith("<svg")
