"""The options' values checked, read from param groups and command lines, and shown as tables."""

from __future__ import annotations

import ast
import contextlib
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from jorge.methods import METHODS
from jorge.options import (
    DEFAULTS,
    FIELDS,
    RULES,
    STATE_VERSION,
    Group,
    Options,
    Rule,
    is_scalar_tensor,
    is_series,
)

#: Words that others have for options; in a group they would be kept and do nothing.
_ALIASES = {
    "learning_rate": "lr",
    "lrate": "lr",
    "wd": "weight_decay",
    "wdecay": "weight_decay",
    "w_decay": "weight_decay",
    "epsilon": "eps",
}
#: Options of torch's optimizers, and of common others, that look like one of ours; a group may come from theirs.
_THEIRS = {"dampening", "etas", "beta", "beta1", "beta2", "beta3", "momentum_decay", "decoupled_weight_decay"}
#: Options of torch's optimizers that nothing of Jorge's stands for, however alike their names are.
_NO_COUNTERPART = {"amsgrad", "dampening", "lr_decay", "alpha", "centered", "etas", "lambd", "momentum_decay", "rho"}
#: How like an option's name a key must be to be a typo, by difflib's ratio: `weight_deacy`, not `max_momentum`; and so
#: for names of up to six letters, of which one is a larger part: `lrs`, `betta`, not `steps`.
_NEAR, _NEAR_SHORT, _SHORT = 0.85, 0.8, 6


def wants(name: str) -> str:
    """What an option accepts, in words."""
    return f"one of {', '.join(map(repr, METHODS))}" if name == "method" else RULES[name].wants


def _accepts(name: str, rule: Rule, value: Any) -> bool:
    return rule.accepts(value) and (name != "method" or value in METHODS)


def check(values: Mapping[str, Any], where: str) -> None:
    """Refuse option values that are out of range, and those that exclude each other.

    Raises:
        ValueError: with the option's name, what it wants and what it got.
    """
    for name, rule in RULES.items():
        if name in values and not _accepts(name, rule, values[name]):
            raise ValueError(f"{where}: {name} must be {wants(name)}, got {values[name]!r}")
    if values.get("state_version", STATE_VERSION) != STATE_VERSION:
        raise ValueError(
            f"{where}: state_version must be {STATE_VERSION}, the layout that this version of jorge reads, got "
            f"{values['state_version']!r}; convert the checkpoint or use the version that wrote it"
        )
    if values.get("compile_step") and values.get("stagger"):
        raise ValueError(f"{where}: compile_step=True and stagger=True exclude each other: every part would be a graph")
    method = values.get("method", DEFAULTS["method"])
    for name in ("capturable", "cuda_graphs"):
        if values.get(name) and METHODS[method].waits:
            raise ValueError(
                f"{where}: {name}=True and method={method!r} exclude each other: its decompositions make the host wait"
            )
    for name in ("capturable", "compile_step"):
        if values.get("cuda_graphs") and values.get(name):
            raise ValueError(f"{where}: cuda_graphs=True and {name}=True exclude each other: the step has one form")
    if values.get("capturable") and values.get("nonfinite") == "raise":
        raise ValueError(f"{where}: capturable=True and nonfinite='raise' exclude each other: it waits for the device")
    precisions = values.get("matmul_precision")
    switched = {"float32", "tf32"} & set(precisions if is_series(precisions) else (precisions,))
    if values.get("compile_step") and switched:
        raise ValueError(
            f"{where}: compile_step=True cannot switch TF32 inside its graph: give matmul_precision=None and set "
            "torch.set_float32_matmul_precision() for the whole program"
        )


def as_kept(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options as groups and checkpoints keep them: a pair of a configuration's own type is a tuple.

    >>> from collections import UserList
    >>> as_kept({"betas": UserList([0.9, 0.99]), "lr": 0.1})
    {'betas': (0.9, 0.99), 'lr': 0.1}
    """
    pairs = {k: v for k, v in values.items() if k in RULES and is_series(v) and not isinstance(v, (tuple, list))}
    return {**values, **{name: tuple(value) for name, value in pairs.items()}}


def check_known(keys: Iterable[str], where: str) -> None:
    """Refuse keys that are no option, with the nearest one as a suggestion where that may be what is meant.

    Raises:
        TypeError: with the key and the suggestion.
    """
    for key in keys:
        if key in _NO_COUNTERPART:
            raise TypeError(f"{where}: {key!r} is an option of another optimizer that Jorge has no counterpart for")
        if key not in FIELDS:
            near = difflib.get_close_matches(key, FIELDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"options are {', '.join(FIELDS)}"
            raise TypeError(f"{where}: unknown option {key!r}; {hint}")


def check_typos(keys: Iterable[str], where: str) -> None:
    """Refuse keys of a param group that are an option's name, nearly. Others are their owner's, and are kept.

    Frameworks keep what they need in groups: `lr_scale`, `use_fallback`, `foreach`, `max_lr`. So do groups that another
    optimizer has had: `dampening`. An option's name in capitals is a typo.

    Raises:
        TypeError: with the key and the option.
    """
    for key in keys:
        if not isinstance(key, str) or key in FIELDS or key in _THEIRS:
            continue
        lower = key.lower()
        near = [_ALIASES[lower]] if lower in _ALIASES else difflib.get_close_matches(lower, FIELDS, 1, _NEAR_SHORT)
        if near and (lower in _ALIASES or _is_near(lower, near[0])):
            raise TypeError(f"{where}: unknown option {key!r}; did you mean {near[0]!r}?")


def _is_near(key: str, option: str) -> bool:
    """Whether a key differs from an option by so little that it was meant."""
    least = _NEAR_SHORT if len(option) <= _SHORT else _NEAR
    return difflib.SequenceMatcher(None, option, key).ratio() >= least and not _has_affix(key, option)


def _has_affix(key: str, option: str) -> bool:
    """Whether a key is an option's name with a word or number before or after it: `no_weight_decay`, `eps2`."""
    rest = key.replace(option, "", 1)
    return key != option and option in key and (rest.startswith("_") or rest.endswith("_") or rest.isdecimal())


#: Options that may be tensors, or have some.
_MAY_BE_TENSORS = tuple(name for name, rule in RULES.items() if rule.tensors)

#: What a word on a command line stands for, in whichever case.
_WORDS = {"none": None, "true": True, "false": False}


def parse(name: str, text: str) -> Any:
    """The value of an option from a command line: a number, a truth value, a word, `none`, a dtype, or a pair.

    Raises:
        TypeError: there is no such option.
        ValueError: the text stands for nothing that the option accepts.

    >>> parse("interval", "5"), parse("block_size", "none"), parse("betas", "0.9,0.99")
    (5, None, (0.9, 0.99))
    >>> parse("preconditioner_dtype", "bfloat16"), parse("matmul_precision", "float32,bfloat16")
    (torch.bfloat16, ('float32', 'bfloat16'))
    """
    check_known([name], "the options")
    candidates: list[Any] = [text, tuple(text.split(",")), getattr(torch, text, None) if text.isidentifier() else None]
    with contextlib.suppress(ValueError, SyntaxError):
        candidates.insert(0, ast.literal_eval(text))
    if text.lower() in _WORDS:
        candidates.insert(0, _WORDS[text.lower()])
    for value in candidates:
        if _accepts(name, RULES[name], value) and (value is not None or text.lower() == "none"):
            return value
    raise ValueError(f"{name} must be {wants(name)}, got {text!r}")


def read(group: Group, index: int) -> Options:
    """The options of a param group that its owner may have edited. Tensors are not read, as that would wait.

    Raises:
        ValueError: a value is out of range.
    """
    values = dict(group)
    for name in _MAY_BE_TENSORS:
        given = values.get(name)
        if is_scalar_tensor(given):
            del values[name]
        elif is_series(given) and any(map(is_scalar_tensor, given)):
            values[name] = tuple(0.0 if is_scalar_tensor(one) else one for one in given)
    check(values, f"param group {index}")
    return Options.of(group)


def markdown() -> str:
    """The options as two Markdown tables."""
    parts = []
    for title, main in (("The ten that people set", True), ("The others", False)):
        rows = [f"| `{n}` | `{DEFAULTS[n]!r}` | {wants(n)} | {r.says} |" for n, r in RULES.items() if r.main == main]
        parts.append(
            "\n".join([f"## {title}\n", "| option | default | accepts | what it does |", "|---|---|---|---|", *rows])
        )
    return "\n\n".join(parts)
