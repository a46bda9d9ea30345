"""What is refused, and in which words: parameters, gradients and states that cannot be worked with.

Each message says which parameter it is about, what was wrong, and what to do.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from jorge.blocks import matrix_shape
from jorge.exchange.domains import check_placements, is_sharded
from jorge.naming import names as names
from jorge.naming import place_of
from jorge.options import Group, Options
from jorge.routing import COMPUTE_DTYPES, divided

#: Shape and dtype of the tensors of a parameter's state, by key.
Wanted = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


def listed(params: Any) -> list[Any]:
    """The `params` argument as a list; an error where there is nothing to optimize."""
    if isinstance(params, Tensor):
        raise TypeError("params is a single tensor: pass an iterable of tensors, [tensor], or model.parameters()")
    found = list(params)
    if not found:
        raise ValueError(
            "params is empty: nothing to optimize. Was model.parameters() already consumed, or is every layer frozen?"
        )
    return found


def some(names: Sequence[str]) -> str:
    """The first few names, for a message."""
    return ", ".join(names[:4]) + (f" and {len(names) - 4} others" if len(names) > 4 else "")


def name_of(p: Tensor, groups: Sequence[Group]) -> str:
    """A parameter's name, for a message."""
    named = (
        (q, name) for i, group in enumerate(groups) for q, name in zip(group["params"], names(group, i), strict=False)
    )
    return next((name for q, name in named if q is p), "a parameter of no group")


def _named(entry: Any, group_index: int, index: int) -> tuple[str, Any]:
    place = place_of(group_index, index)
    return (f"{entry[0]!r} ({place})", entry[1]) if isinstance(entry, tuple) else (place, entry)


def check_params(group: Any, others: Sequence[Tensor], group_index: int) -> None:
    """Refuse what cannot be optimized: wrong types and dtypes, sparse or sharded tensors, duplicates."""
    if not isinstance(group, dict) or "params" not in group:
        got = f"one with {', '.join(map(repr, group))}" if isinstance(group, dict) else f"a {type(group).__name__}"
        raise TypeError(f"a param group is a dict with the key 'params', got {got}")
    if isinstance(group["params"], set):
        raise TypeError("params is a set, whose order changes between runs: pass a list")
    entries = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    group["params"] = entries
    seen: dict[int, str] = {id(p): "an earlier group" for p in others}
    for i, entry in enumerate(entries):
        name, p = _named(entry, group_index, i)
        if not isinstance(p, Tensor):
            raise TypeError(f"{name} is a {type(p).__name__}, not a tensor: pass tensors, or (name, tensor) pairs")
        if p.layout != torch.strided:
            raise TypeError(f"{name} has layout {p.layout}: only dense parameters are supported; use p.to_dense()")
        if p.is_complex():
            raise TypeError(f"{name} is complex ({p.dtype}): optimize torch.view_as_real(p) as a real parameter")
        if p.dtype not in COMPUTE_DTYPES:
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in COMPUTE_DTYPES)
            raise TypeError(f"{name} has dtype {p.dtype}: only floating-point parameters ({wanted}) can be optimized")
        if not (p.is_leaf or p.retains_grad):
            raise ValueError(f"{name} is not a leaf: it was computed from other tensors; pass those instead")
        if id(p) in seen:
            raise ValueError(f"{name} appears twice, also as {seen[id(p)]}: list each parameter once")
        seen[id(p)] = name


def check_divisible(group: Group, index: int, options: Options) -> None:
    """Refuse a group with a matrix that cannot be cut into `splits` equal parts.

    Raises:
        ValueError: with the parameter's name.
    """
    for i, entry in enumerate(group["params"]):
        name, p = _named(entry, index, i)
        if is_sharded(p):
            check_placements(p, name, options)
        try:
            divided(tuple(p.shape), options.batch_dims, options.splits)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


#: No bias or norm is as long: what is may be many parameters in one.
_FLAT = 2**14
#: So may be what is shorter, where there is nothing else: one flat parameter for weights that decay, one for others.
_FLAT_ALONE, _FEW = 2**10, 2


def levels_to_the_caller() -> int:
    """The `stacklevel` by which a warning of the function that asks is the caller's, outside this package and torch."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("jorge", "torch"):
        level, frame = level + 1, frame.f_back
    return level


def warn_of_flat(some_groups: Sequence[Group], groups: Sequence[Group]) -> bool:
    """Warn where no parameter is a matrix and one is very long: wrappers that shard a model flatten its weights.

    Args:
        some_groups: those to look at.
        groups: all of the optimizer's, by which parameters are called.

    Returns:
        whether it did.

    Raises:
        TypeError: they are FSDP1's, which marks what it has flattened.
    """
    params = [p for group in some_groups for p in group["params"]]
    flattened = [p for p in params if getattr(p, "_fsdp_flattened", False)]
    if flattened and not any(matrix_shape(tuple(p.shape)) for p in flattened):
        raise TypeError(
            f"FSDP1 has flattened {name_of(flattened[0], groups)}, with use_orig_params too, and no matrix is left to "
            "precondition: shard the model with fully_shard (FSDP2) instead, or use DDP"
        )
    if not params or any(matrix_shape(tuple(p.shape)) for p in params):
        return False
    longest = max(params, key=Tensor.numel)
    sizes = [p.numel() for group in groups for p in group["params"]]
    if longest.numel() < _FLAT and (len(sizes) > _FEW or min(sizes) < _FLAT_ALONE):
        return False
    warnings.warn(
        f"no parameter is a matrix, and {name_of(longest, groups)} has {longest.numel()} elements: all take the plain "
        "step of Adam or SGD. FSDP1 and DeepSpeed's ZeRO flatten weights so. Shard the model with fully_shard (FSDP2) "
        "instead, or use DDP",
        stacklevel=levels_to_the_caller(),
    )
    return True


def warn_of_no_gradients() -> None:
    """Warn of a first step without any gradient where there are other processes: the model may have new parameters."""
    warnings.warn(
        "no parameter of the optimizer has a gradient, and nothing moves. fully_shard and other wrappers that shard a "
        "model give it new parameters: build the optimizer after them, or call step() after backward()",
        stacklevel=levels_to_the_caller(),
    )


def check_sharded_alike(p: Tensor, name: str) -> None:
    """Refuse a gradient that is sharded where its parameter is not, or the reverse.

    Raises:
        RuntimeError: with its name.
    """
    if p.grad is not None and is_sharded(p) != is_sharded(p.grad):
        first, second = ("is", "is none") if is_sharded(p) else ("is not", "is one")
        raise RuntimeError(
            f"{name} {first} a DTensor, and its gradient {second}: build the optimizer after the model is sharded"
        )


def bad_gradient(p: Tensor, grad: Tensor, name: str) -> RuntimeError:
    """The error for a gradient that is not dense, real, or of its parameter's shape and device."""
    if grad.layout != torch.strided:
        return RuntimeError(
            f"the gradient of {name} (shape {tuple(p.shape)}) is sparse ({grad.layout}): only dense gradients are "
            "supported; build the embedding with sparse=False, or give it to torch.optim.SparseAdam"
        )
    return RuntimeError(
        f"the gradient of {name} has shape {tuple(grad.shape)}, dtype {grad.dtype} and device {grad.device}, its "
        f"parameter {tuple(p.shape)}, {p.dtype} and {p.device}: clear it with zero_grad() after changing a parameter"
    )


def check_own(name: str, entry: Any, owners: dict[int, str]) -> None:
    """Refuse an entry of `optimizer.state` that is another parameter's too.

    Raises:
        RuntimeError: with both names.
    """
    if entry is not None and id(entry) in owners:
        raise RuntimeError(f"{name} and {owners[id(entry)]} share one entry of optimizer.state: give each its own")
    owners[id(entry)] = name


def check_state(name: str, entry: Any, wanted: Wanted, *, had_state: bool, on_meta: bool = False) -> bool:
    """Whether a parameter's entry of `optimizer.state` holds its state; an error where it holds a part or another.

    What else it holds is its owner's.

    Args:
        name: of the parameter.
        entry: of `optimizer.state`.
        wanted: what its state is to hold.
        had_state: whether it has held one: then a `step` that is left is a part of it.
        on_meta: whether the parameter is on the meta device.

    Raises:
        RuntimeError: keys are missing, a value is no tensor or of another shape, `step` is no count.
    """
    if entry is None:
        return False
    if not isinstance(entry, dict):
        raise RuntimeError(f"optimizer.state of {name} is a {type(entry).__name__}: it is to be a dict, or deleted")
    missing = [key for key in wanted if key not in entry]
    if not wanted:
        return False
    if len(missing) == len(wanted) and not (had_state and "step" in entry):
        check_step(name, entry.get("step", 0))
        _refuse_ours(name, entry, wanted)
        return False
    if missing:
        raise RuntimeError(
            f"optimizer.state of {name} lacks {', '.join(missing)}: put what was taken away back, or clear "
            "optimizer.state[p] to start that parameter anew"
        )
    for key, (shape, _) in wanted.items():
        value = entry[key]
        if (found := unusable(value, shape, on_meta=on_meta)) is not None:
            raise RuntimeError(
                f"{key} of {name} in optimizer.state is {found}, expected a dense real tensor of shape {shape}: put "
                "back what was there, or clear optimizer.state[p] to start that parameter anew"
            )
    _refuse_ours(name, entry, wanted)
    if "step" not in entry:
        raise RuntimeError(f"optimizer.state of {name} lacks step: set it, or clear optimizer.state[p]")
    check_step(name, entry["step"])
    return True


def unusable(value: Any, shape: tuple[int, ...], *, on_meta: bool = False) -> str | None:
    """What a value is, in words, where it is no dense real tensor of a shape with numbers in it.

    `on_meta` says that its parameter has no numbers either.
    """
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.layout != torch.strided or value.is_complex():
        return f"of layout {value.layout}" if value.layout != torch.strided else "complex"
    if value.is_meta and not on_meta:
        return "on the meta device"
    if not value.is_floating_point():
        return f"of {value.dtype}"
    return None if tuple(value.shape) == shape else f"of shape {tuple(value.shape)}"


def _refuse_ours(name: str, entry: Mapping[Any, Any], wanted: Wanted) -> None:
    """Refuse keys that look like a state's and are none of this one's: they could not be loaded again."""
    if strange := [key for key in entry if key not in wanted and is_ours(key)]:
        raise RuntimeError(
            f"optimizer.state of {name} holds {', '.join(map(str, strange))}, which is not of its layout: give keys of "
            "your own other names"
        )


def check_step(name: str, value: Any) -> int:
    """The number of steps that a state says it has seen.

    Raises:
        RuntimeError: it is no whole number of at least 0.
    """
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu":
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RuntimeError(f"step of {name} in optimizer.state must be a whole number of at least 0, got {value!r}")
    return value


def is_ours(key: Any) -> bool:
    """Whether a key looks like one of a state of ours: `left.3`, `refreshes.0`."""
    head, dot, number = str(key).rpartition(".")
    return bool(dot) and number.isdecimal() and head.partition("_")[0] in ("left", "right", "refreshes", "quartics")
