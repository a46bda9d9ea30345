"""How many CUDA kernels torch launches for an operator, by the rules of its sources, without a GPU.

Most operators are one kernel. A foreach operator takes many tensors with one, but only where all are of one dtype and
lie in memory alike; else each tensor has its own. The counts of a step are within a twentieth of those that an H100's
profiler saw (`lab/tests/cost/test_gpu.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from jorge.cost.counter import Meter

#: Of `multi_tensor_apply`: tensors of a launch by how many lists there are, elements of a chunk, chunks of a launch.
_TENSORS, _CHUNK, _CHUNKS = {1: 110, 2: 64, 3: 48, 4: 36}, 65536, 320


class CudaMeter(Meter):  # type: ignore[no-untyped-call]
    """Counts the CUDA kernels that its launches would be, as `kernels`."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator and count it."""
        before = self.launches
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.launches > before:
            self.kernels += cuda_kernels(func.overloadpacket.__name__, args)
        return result


def cuda_kernels(name: str, args: Sequence[Any]) -> int:
    """Kernels of an operator that is no view and no bare allocation.

    Args:
        name: of its packet: `mul`, `_foreach_mul_`.
        args: those of the call, by position.

    >>> import torch
    >>> weights, scale = [torch.ones(3, 4), torch.ones(5)], torch.ones((), dtype=torch.float64)
    >>> cuda_kernels("_foreach_mul_", (weights, 2.0)), cuda_kernels("_foreach_mul_", (weights, scale))
    (1, 2)
    """
    if not name.startswith("_foreach_"):
        return 1
    lists = [value for value in args if isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor)]
    count = len(lists[0])
    if not _is_fast(name, lists, [value for value in args if isinstance(value, Tensor)]):
        return count
    chunks = sum(math.ceil(tensor.numel() / _CHUNK) for tensor in lists[0])
    launches: int = max(math.ceil(count / _TENSORS[len(lists)]), math.ceil(chunks / _CHUNKS))
    return launches + 2 * (name == "_foreach_norm")  # whose room is cleared, and whose parts are added up


def _is_fast(name: str, lists: Sequence[Sequence[Tensor]], scalars: Sequence[Tensor]) -> bool:
    first = lists[0]
    if name.startswith("_foreach_lerp") and len(lists) == 3:  # a weight for each
        return False
    one_dtype = all(tensor.dtype == each[0].dtype for each in lists for tensor in each)
    if name != "_foreach_copy_":  # which may convert
        one_dtype = one_dtype and all(each[0].dtype == first[0].dtype for each in [*lists, scalars or first])
    return one_dtype and all(_alike(first[i], each[i]) for each in lists for i in range(len(first)))


def _alike(some: Tensor, other: Tensor) -> bool:
    """Whether both are dense and lie in memory in the same order."""
    strides = zip(some.stride(), other.stride(), some.shape, strict=False)
    same = some.shape == other.shape and all(a == b for a, b, side in strides if side != 1)
    span = 1 + sum((side - 1) * stride for side, stride in zip(some.shape, some.stride(), strict=True))
    return same and span == max(1, some.numel())
