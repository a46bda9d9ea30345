"""What a param group may hold: the checks of options, parameters, gradients and saved state, and their messages.

Each error says which parameter or option it is about, what was wrong, and what to do.
"""

from __future__ import annotations

import difflib
import math
import numbers
import sys
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import torch
from torch import Tensor

from jorge.methods import METHODS, Init
from jorge.roots import Precision

#: Version of the state's layout; a change of keys, shapes or meaning raises it.
STATE_VERSION = 1

#: Keys that torch and its schedulers put into param groups, beside the options.
_TORCH_KEYS = {"params", "param_names", "name", "initial_lr", "differentiable"}
_TORCH_KEYS |= {"max_lr", "min_lr", "base_momentum", "max_momentum", "swa_lr"}

Group = dict[str, Any]


#: What parameters may be; arithmetic is float32 for all but float64.
_PARAM_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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


def names(group: Group, index: int) -> list[str]:
    """A name for each parameter of a group: its own where it was given, else its place."""
    return list(group.get("param_names") or (_place(index, i) for i in range(len(group["params"]))))


def _place(group_index: int, index: int) -> str:
    return f"parameter {index} of group {group_index}"


def _named(entry: Any, group_index: int, index: int) -> tuple[str, Any]:
    place = _place(group_index, index)
    return (f"{entry[0]!r} ({place})", entry[1]) if isinstance(entry, tuple) else (place, entry)


def check_params(group: Any, others: Sequence[Tensor], group_index: int) -> None:
    """Refuse what cannot be optimized: wrong types and dtypes, sparse or sharded tensors, duplicates."""
    if not isinstance(group, dict) or "params" not in group:
        raise TypeError(f"a param group is a dict with the key 'params', got {type(group).__name__}")
    if isinstance(group["params"], set):
        raise TypeError("params is a set, whose order changes between runs: pass a list")
    entries = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    group["params"] = entries
    seen: dict[int, str] = {id(p): "an earlier group" for p in others}
    for i, entry in enumerate(entries):
        name, p = _named(entry, group_index, i)
        if not isinstance(p, Tensor):
            raise TypeError(f"{name} is a {type(p).__name__}, not a tensor: pass tensors, or (name, tensor) pairs")
        if _is_sharded(p):
            raise TypeError(f"{name} is a DTensor: sharded parameters are not supported yet")
        if p.layout != torch.strided:
            raise TypeError(f"{name} has layout {p.layout}: only dense parameters are supported; use p.to_dense()")
        if p.is_complex():
            raise TypeError(f"{name} is complex ({p.dtype}): optimize torch.view_as_real(p) as a real parameter")
        if p.dtype not in _PARAM_DTYPES:
            wanted = ", ".join(str(dtype).removeprefix("torch.") for dtype in _PARAM_DTYPES)
            raise TypeError(f"{name} has dtype {p.dtype}: only floating-point parameters ({wanted}) can be optimized")
        if not (p.is_leaf or p.retains_grad):
            raise ValueError(f"{name} is not a leaf: it was computed from other tensors; pass those instead")
        if id(p) in seen:
            raise ValueError(f"{name} appears twice, also as {seen[id(p)]}: list each parameter once")
        seen[id(p)] = name


def _is_sharded(p: Tensor) -> bool:
    """Whether `p` is a DTensor, without importing its module (half a second) where nobody has."""
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(p, module.DTensor)


def check_known(group: Group, where: str) -> None:
    """Refuse keys that are neither an option nor torch's own, with the nearest option as a suggestion."""
    for key in group:
        if key not in _CHECKS and key not in _TORCH_KEYS:
            near = difflib.get_close_matches(key, _CHECKS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"options are {', '.join(_CHECKS)}"
            raise TypeError(f"{where}: unknown option {key!r}; {hint}")


def check_changed(group: Group, checked: dict[int, dict[str, Any]], index: int) -> None:
    """As :func:`check_group`, for the options of the group that are not as they were when they were last looked at.

    Tensors are not read: that would wait for the device.
    """
    seen = checked.setdefault(index, {})
    changed = {name for name in _CHECKS if name in group and group[name] is not seen.get(name, seen)}
    if changed:
        readable = {n: v for n, v in group.items() if n in _CHECKS and not isinstance(v, Tensor)}
        check_group(readable, f"param group {index}")
        if isinstance(group["lr"], Tensor) and group["lr"].numel() != 1:
            raise ValueError(f"param group {index}: lr must have one element, got {tuple(group['lr'].shape)}")
        checked[index] = {name: group[name] for name in _CHECKS if name in group}


def check_group(group: Group, where: str) -> None:
    """Refuse option values that are out of range."""
    for name, (accepts, wants) in _CHECKS.items():
        if name in group and not accepts(group[name]):
            raise ValueError(f"{where}: {name} must be {wants}, got {group[name]!r}")
    if group.get("fused") and group.get("stagger"):
        raise ValueError(f"{where}: fused=True and stagger=True exclude each other: every part would be a graph")
    precisions = group.get("matmul_precision")
    switched = {"float32", "tf32"} & set(precisions if isinstance(precisions, (tuple, list)) else (precisions,))
    if group.get("fused") and switched:
        raise ValueError(
            f"{where}: fused=True cannot switch TF32 inside its graph: give matmul_precision=None and set "
            "torch.set_float32_matmul_precision() for the whole program"
        )


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _fraction(value: Any) -> bool:
    return _number(value) and 0 <= value < 1


def _lr(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.is_floating_point() and _lr(value.item())
    return _number(value) and value >= 0


def _betas(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(_fraction(beta) for beta in value)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _precision(value: Any) -> bool:
    known = (None, *get_args(get_args(Precision)[0]))
    if isinstance(value, (tuple, list)):
        return len(value) == 2 and all(each in known for each in value)
    return value in known


_ROOT_DTYPES = (torch.float32, torch.float64, torch.bfloat16)
_CHECKS: dict[str, tuple[Any, str]] = {
    "lr": (_lr, "a finite number of at least 0, or a floating-point tensor with one such element"),
    "momentum": (_fraction, "in [0, 1)"),
    "nesterov": (_flag, "True or False"),
    "weight_decay": (lambda v: _number(v) and v >= 0, "a finite number of at least 0"),
    "method": (lambda v: isinstance(v, str) and v in METHODS, f"one of {', '.join(map(repr, METHODS))}"),
    "grafting": (lambda v: v in ("sgd", "adam"), "'sgd' or 'adam'"),
    "graft_limit": (lambda v: v is None or (_number(v) and v >= 1), "None or a finite number of at least 1"),
    "betas": (_betas, "two numbers in [0, 1)"),
    "eps": (lambda v: _number(v) and v >= 0, "a finite number of at least 0"),
    "beta2_decay": (lambda v: v is None or (_number(v) and -1 <= v < 0), "None or a number in [-1, 0)"),
    "interval": (lambda v: _whole(v, 1), "a whole number of at least 1"),
    "warmup_refreshes": (lambda v: _whole(v, 0), "a whole number of at least 0"),
    "block_size": (lambda v: v in ("auto", None) or _whole(v, 1), "a whole number of at least 1, 'auto' or None"),
    "max_dim": (lambda v: _whole(v, 1), "a whole number of at least 1"),
    "preconditioner_beta2": (lambda v: _fraction(v) and v > 0, "in (0, 1)"),
    "damping": (lambda v: _number(v) and v >= 0, "a finite number of at least 0"),
    "degree": (lambda v: _whole(v, 1) and v <= 2, "1 or 2"),
    "init": (lambda v: v in get_args(Init), "'auto' or 'paper'"),
    "root_eps": (lambda v: v is None or (_number(v) and v > 0), "None or a finite number above 0"),
    "preconditioner_dtype": (
        lambda v: v is None or v in _ROOT_DTYPES,
        "None, torch.float32, torch.float64 or torch.bfloat16",
    ),
    "matmul_precision": (
        _precision,
        f"one of {', '.join(map(repr, get_args(get_args(Precision)[0])))} or None, or a pair (refresh, direction)",
    ),
    "stagger": (_flag, "True or False"),
    "workspace": (lambda v: v is None or (_number(v) and v > 0), "None or a finite number above 0"),
    "fused": (_flag, "True or False"),
    "maximize": (_flag, "True or False"),
    "capturable": (_flag, "True or False"),
    "state_version": (
        lambda v: v == STATE_VERSION,
        f"{STATE_VERSION}, the layout that this version of jorge reads; convert the checkpoint or use the version "
        "that wrote it",
    ),
}


def check_gradient(p: Tensor, group: Group, group_index: int, index: int) -> None:
    """Refuse gradients that cannot be used, before anything is changed."""
    grad = p.grad
    assert grad is not None
    if grad.layout == torch.strided and grad.shape == p.shape and grad.device == p.device and not grad.is_complex():
        return
    name = names(group, group_index)[index]
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"the gradient of {name} (shape {tuple(p.shape)}) is sparse ({grad.layout}): only dense gradients are "
            "supported; build the embedding with sparse=False, or give it to torch.optim.SparseAdam"
        )
    raise RuntimeError(
        f"the gradient of {name} has shape {tuple(grad.shape)}, dtype {grad.dtype} and device {grad.device}, its "
        f"parameter {tuple(p.shape)}, {p.dtype} and {p.device}: clear it with zero_grad() after changing a parameter"
    )


def check_layouts(layouts: Sequence[tuple[Tensor, tuple[torch.Size, torch.dtype]]], groups: Sequence[Group]) -> None:
    """Refuse parameters whose shape or dtype is no longer that of their state."""
    for p, (shape, dtype) in layouts:
        if p.shape != shape or p.dtype != dtype:
            named = ((q, n) for i, g in enumerate(groups) for q, n in zip(g["params"], names(g, i), strict=True))
            found = (name for q, name in named if q is p)
            raise RuntimeError(
                f"{next(found, 'a parameter')} is now {tuple(p.shape)} of {p.dtype}, its state is for "
                f"{tuple(shape)} of {dtype}: build a new optimizer, or delete optimizer.state[p]"
            )


def check_saved_groups(saved: dict[str, Any], groups: Sequence[Group]) -> None:
    """Refuse a state dict whose param groups do not match."""
    if len(saved["param_groups"]) != len(groups):
        raise ValueError(
            f"the saved state has {len(saved['param_groups'])} param groups, this optimizer {len(groups)}: "
            "build it with the groups that it was saved with"
        )
    for index, (theirs, mine) in enumerate(zip(saved["param_groups"], groups, strict=True)):
        if len(theirs["params"]) != len(mine["params"]):
            raise ValueError(
                f"param group {index} was saved with {len(theirs['params'])} parameters and has "
                f"{len(mine['params'])} here: build the optimizer with the parameters that it was saved with"
            )
        if "state_version" not in theirs:
            raise ValueError(f"param group {index} has no state_version: this state was not saved by jorge.Jorge")
        where = f"saved param group {index}"
        check_known({key: value for key, value in theirs.items() if key not in mine}, where)
        check_group({**mine, **theirs}, where)


def check_saved_state(name: str, saved: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuse a parameter's saved state whose keys or shapes are not those `wanted`."""
    keys: Iterable[str] = sorted(saved.keys() ^ wanted.keys())
    if keys:
        raise ValueError(
            f"the saved state of {name} does not fit: {', '.join(keys)} "
            f"{'is' if len(list(keys)) == 1 else 'are'} missing on one side. Was the parameter's shape or the method, "
            "grafting, block_size or max_dim another one?"
        )
    for key, value in wanted.items():
        if isinstance(value, Tensor) and tuple(saved[key].shape) != tuple(value.shape):
            raise ValueError(
                f"the saved {key} of {name} has shape {tuple(saved[key].shape)}, expected {tuple(value.shape)}: "
                "it belongs to a parameter of another shape, or was saved with another block_size"
            )
