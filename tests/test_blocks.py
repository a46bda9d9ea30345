import math
from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st

from jorge.blocks import automatic, blocking, gather, matrix_shape, near_square, scatter, split

shapes = st.lists(st.integers(1, 40), min_size=1, max_size=5).map(tuple)
sizes = st.one_of(st.integers(1, 50), st.just("auto"), st.none())


@given(st.integers(1, 10_000), st.integers(1, 1024))
def test_split_is_equal_within_the_limit_and_short(size: int, limit: int) -> None:
    parts = split(size, limit)
    assert sum(parts) == size
    assert max(parts) <= limit
    assert max(parts) - min(parts) <= 1
    assert len(parts) == math.ceil(size / limit)


@given(shapes)
def test_a_matrix_keeps_the_elements_and_never_has_a_side_of_one(shape: tuple[int, ...]) -> None:
    matrix = matrix_shape(shape)
    if matrix is None:
        assert sum(d > 1 for d in shape) < 2
    else:
        assert math.prod(matrix) == math.prod(shape)
        assert min(matrix) > 1


def test_leading_ones_kernels_and_heads() -> None:
    assert matrix_shape((1, 64, 64)) == (64, 64)
    assert matrix_shape((1, 1, 5, 7)) == (5, 7)
    assert matrix_shape((64, 3, 7, 7)) == (64, 147)
    assert matrix_shape((32, 1, 3, 3)) == (32, 9)
    assert matrix_shape((8, 1024, 1024)) == (8192, 1024)
    assert matrix_shape((7,)) is None
    assert matrix_shape(()) is None


@given(shapes, sizes, st.integers(10, 600), st.integers(1, 3))
def test_grids_cover_every_element_once(shape: tuple[int, ...], size: Any, max_dim: int, count: int) -> None:
    cut = blocking(shape, block_size=size, max_dim=max_dim)
    if cut is None:
        return
    source = torch.arange(count * math.prod(cut.matrix), dtype=torch.float64).view(count, *cut.matrix)
    target = torch.full_like(source, -1)
    for grid in cut.grids:
        blocks = gather(source, grid)
        assert blocks.shape == (count * grid.blocks, *grid.shape)
        scatter(blocks, target, grid)
    assert torch.equal(source, target)
    assert math.prod(cut.counts) == cut.blocks
    for d, kind, side in zip(cut.matrix, (cut.left, cut.right), (0, 1), strict=True):
        assert kind == ("diagonal" if d > max_dim else "full")
        if kind == "full":
            longest = max(grid.shape[side] for grid in cut.grids)
            if size is None or (size == "auto" and d <= 256):
                assert longest == d
            else:
                assert longest <= (128 if size == "auto" else size)


@given(st.integers(2, 5000), st.integers(2, 5000))
def test_auto_keeps_sides_that_cost_little_and_cuts_others_finely(rows: int, columns: int) -> None:
    for d, limit in zip((rows, columns), automatic((rows, columns)), strict=True):
        assert limit == d if d <= 256 else 128 / 3 < limit <= 128


@given(st.integers(2, 5000), st.integers(2, 5000), st.sampled_from([32, 128, 256, 1024, 4096]))
def test_near_square_blocks_are_bounded_and_cheap(rows: int, columns: int, largest: int) -> None:
    limits = near_square((rows, columns), largest)
    assert max(limits) <= largest
    for d, limit in zip((rows, columns), limits, strict=True):
        assert limit <= max(256, min(rows, columns))
        assert limit == d or limit > min(largest, 256) / 3, "not cut to shreds"
        assert limit == d or d > min(largest, 256), "short sides stay whole"


def test_a_whole_contiguous_matrix_is_gathered_without_a_copy() -> None:
    cut = blocking((6, 8), block_size=16, max_dim=99)
    assert cut is not None
    matrices = torch.randn(3, 6, 8)
    assert gather(matrices, cut.grids[0]).data_ptr() == matrices.data_ptr()


def test_where_a_rule_begins() -> None:
    """Another cut at just four times squarer, equal parts at just a quarter more of them, diagonals above `max_dim`."""
    assert matrix_shape((16, 2, 32)) == (32, 32)
    assert matrix_shape((16, 2, 24)) == (16, 48)
    assert automatic((505, 10)) == (101, 10)  # five equal parts and not four
    for most, kind in ((8, "full"), (7, "diagonal")):
        found = blocking((8, 4), block_size=None, max_dim=most)
        assert found is not None
        assert found.sides == (kind, "full")
