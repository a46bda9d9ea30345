"""Variance adaptation: shares of rows and columns, levelled by half, whatever the scale, and never poisoned."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from jorge import Jorge, variance

ONE = torch.ones(())


def observed(*directions: Tensor, moves: Tensor = ONE) -> tuple[Tensor, Tensor]:
    """The variances of a shape group after these directions, `[count, M, N]` each."""
    count, m, n = directions[0].shape[:3]
    rows, columns = directions[0].new_zeros(count, m), directions[0].new_zeros(count, n)
    for t, direction in enumerate(directions, start=1):
        norms = variance.side_norms([direction])
        variance.observe([rows], [columns], *norms, torch.full((count,), float(t)), moves)
    return rows, columns


def adapted(direction: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    found = direction.clone()
    variance.adapt([found], [rows], [columns])
    return found


@given(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(-15, 15), st.integers(1, 30))
def test_variances_are_running_shares_whatever_the_scale(count: int, m: int, n: int, scale: int, steps: int) -> None:
    torch.manual_seed(0)
    directions = [torch.randn(count, m, n, dtype=torch.float64) for _ in range(steps)]
    rows, columns = observed(*directions)
    mean = torch.zeros_like(rows)
    for t, direction in enumerate(directions, start=1):
        squares = direction.square()
        mean.lerp_(squares.sum(2) / squares.sum((1, 2)).unsqueeze(1), max(0.05, 1 / t))
    assert torch.allclose(rows, mean, rtol=1e-12)
    assert torch.allclose(rows.sum(1), torch.ones(count, dtype=torch.float64))
    assert torch.allclose(columns.sum(1), torch.ones(count, dtype=torch.float64))
    scaled = observed(*[direction * 10.0**scale for direction in directions])
    assert torch.allclose(scaled[0], rows, rtol=1e-9)
    assert torch.allclose(scaled[1], columns, rtol=1e-9)


def test_rows_and_columns_are_levelled_by_half() -> None:
    signs = torch.randn(2, 5, 7).sign()
    rows, columns = torch.logspace(0, -2, 5), torch.logspace(0, 1, 7)
    direction = signs * torch.outer(rows, columns)
    found = adapted(direction, *observed(direction))
    expected = signs * torch.outer(rows, columns).sqrt()
    assert torch.allclose(found / found.norm(), expected / expected.norm(), rtol=1e-4)
    assert torch.equal(adapted(direction.view(2, 5, 7, 1, 1), *observed(direction)).view(2, 5, 7), found)


def test_what_is_alone_in_its_row_and_column_becomes_no_larger_than_the_others() -> None:
    """Square roots of the shares would turn the sizes of a diagonal round: the smallest would be the largest."""
    diagonal = torch.diag(torch.tensor([1.0, -0.1, 0.01])).unsqueeze(0)
    found = adapted(diagonal, *observed(diagonal))
    assert torch.allclose(found / found[0, 0, 0], diagonal.sign(), atol=1e-4)
    blocks = torch.zeros(1, 8, 8)
    blocks[0, :4, :4], blocks[0, 4:, 4:] = 1, 0.01
    found = adapted(blocks, *observed(blocks))
    assert torch.allclose(found / found[0, 0, 0], blocks.sign(), atol=1e-4)


def test_a_row_of_rounding_stays_small() -> None:
    direction = torch.ones(1, 4, 6)
    direction[0, 2] = 1e-8
    found = adapted(direction, *observed(direction))
    assert found[0, 2].norm() < 1e-5 * found.norm()
    direction[0, 2] = 0
    assert not adapted(direction, *observed(direction))[0, 2].any()


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 4), torch.full((1, 3, 4), 3e38)], ids=["zeros", "too large"])
def test_a_direction_without_a_norm_changes_nothing_but_the_scale(bad: Tensor) -> None:
    good = torch.randn(1, 3, 4)
    before, after = observed(good), observed(good, bad)
    for one, other in zip(before, after, strict=True):
        assert torch.allclose(one / one.sum(), other / other.sum())
    assert adapted(good, *observed(bad)).isfinite().all()


def test_what_does_not_move_stays_to_the_bit() -> None:
    rows, columns = torch.rand(2, 3), torch.rand(2, 4)
    kept = rows.clone(), columns.clone()
    norms = variance.side_norms([torch.randn(2, 3, 4)])
    variance.observe([rows], [columns], *norms, torch.ones(2), torch.tensor([0.0, 1.0]))
    assert torch.equal(rows[0], kept[0][0])
    assert torch.equal(columns[0], kept[1][0])
    assert not torch.equal(rows[1], kept[0][1])


@pytest.mark.parametrize(
    ("shape", "options", "has"),
    [
        ((4, 6), {}, True),
        ((4, 6, 1, 1), {}, True),
        ((4, 6, 3), {}, False),
        ((6,), {}, False),
        ((1, 6), {}, False),
        ((4, 6), {"grafting": "sgd"}, False),
        ((4, 6), {"adapt_variance": False}, False),
        ((4, 6), {"max_dim": 2}, True),
    ],
)
def test_linear_maps_have_it_with_adams_length(shape: tuple[int, ...], options: dict[str, Any], has: bool) -> None:
    p = nn.Parameter(torch.randn(shape))
    optimizer = Jorge([p], lr=0.01, **options)
    p.grad = torch.randn(shape)
    optimizer.step()
    assert ("row_var" in optimizer.state[p]) == has


def test_a_large_row_of_the_direction_is_shortened() -> None:
    """What whitening cannot level: a diagonal side that is damped, or, here, no preconditioner at all."""
    moved = []
    for adapt in (True, False):
        p = nn.Parameter(torch.zeros(4, 6))
        optimizer = Jorge([p], lr=0.1, interval=10, warmup_refreshes=0, weight_decay=0, adapt_variance=adapt)
        p.grad = (
            torch.logspace(0, -1, 4)[:, None] * torch.randn(4, 6, generator=torch.Generator().manual_seed(1)).sign()
        )
        optimizer.step()  # the first refresh comes at step 10
        moved.append(p.detach().norm(dim=1))
    assert torch.allclose(moved[1][0] / moved[1][-1], torch.tensor(10.0), rtol=1e-3)
    assert torch.allclose(moved[0][0] / moved[0][-1], torch.tensor(10**0.5), rtol=1e-3)
