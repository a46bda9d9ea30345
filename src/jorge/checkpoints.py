"""State dicts that are loaded: whose each state is, and what is refused before anything has changed."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, takewhile
from typing import Any

from torch import Tensor

from jorge.checks import check
from jorge.exchange.checkpoints import whole
from jorge.options import CUDA_BLOCK_SIZE, SHAPING, Group, Options
from jorge.routing import layout
from jorge.validation import Wanted, check_step, is_ours, names, some, unusable

#: What counts or measures, by the key without its number: never below 0.
_NEVER_NEGATIVE = {
    *("exp_avg_sq", "adam_step", "graft_length", "schatten_scale", "row_var", "col_var"),
    *("refreshes", "quartics", "left_moment", "right_moment"),
}
#: What wrappers put between the parts of a name: `torch.compile`, FSDP1 and activation checkpoints.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class Checkpoint:
    """A state dict that fits an optimizer.

    Args:
        packed: the state dict, its groups in the order of the optimizer's.
        state: the states by parameter, and what else it holds by its key.
        remarks: what its owner should know: guesses that were made, options that become others.
    """

    packed: dict[str, Any]
    state: dict[Any, Any]
    remarks: tuple[str, ...]


def read(saved: Mapping[str, Any], groups: Sequence[Group], defaults: Mapping[str, Any]) -> Checkpoint:
    """Match a state dict with an optimizer's groups, and look at all that it holds.

    Raises:
        ValueError: it is no state dict of an optimizer, its groups do not match, or a state has another layout or
            version or holds what is no state; it says which group, or which parameter and key.
    """
    theirs = _saved_groups(saved, len(groups))
    ordered, guess = _in_order_of_names(theirs, groups)
    _check_groups(ordered, groups)
    state = _states(saved["state"], ordered, groups, defaults)
    remarks = [each for each in (guess, _reshaped(ordered, groups, defaults)) if each is not None]
    return Checkpoint({**saved, "param_groups": ordered}, state, tuple(remarks))


def _saved_groups(saved: Mapping[str, Any], count: int) -> list[Group]:
    """The groups of a state dict, so many, once each is a dict with a list of keys, which no other has."""
    lacking = [key for key in ("state", "param_groups") if key not in saved]
    if lacking or not isinstance(saved["state"], Mapping) or not isinstance(saved["param_groups"], (list, tuple)):
        raise ValueError(
            f"this is no state dict of an optimizer: {' and '.join(lacking) or 'state or param_groups'} "
            f"{'missing' if lacking else 'of another type'}. Give load_state_dict() what state_dict() returned"
        )
    if len(saved["param_groups"]) != count:
        raise ValueError(
            f"the saved state has {len(saved['param_groups'])} param groups, this optimizer {count}: "
            "build it with the groups that it was saved with"
        )
    seen: set[Any] = set()
    for index, group in enumerate(saved["param_groups"]):
        where = f"saved param group {index}"
        if not isinstance(group, Mapping):
            raise ValueError(f"{where} is a {type(group).__name__}, expected a dict")
        keys = group.get("params")
        if not isinstance(keys, (list, tuple)) or not all(isinstance(key, Hashable) for key in keys):
            found = type(keys).__name__ if "params" in group else "missing"
            raise ValueError(f"{where}: params must be a list of the states' keys, got {found}")
        if len(seen | set(keys)) != len(seen) + len(keys):
            raise ValueError(f"{where}: params has a key twice, so that two parameters would have one state")
        seen |= set(keys)
        given = group.get("param_names")
        fits = isinstance(given, (list, tuple)) and all(isinstance(name, str) for name in given)
        if given is not None and not (fits and len(given) <= len(keys)):
            raise ValueError(f"{where}: param_names must be a list of at most {len(keys)} names, got {given!r}")
        away = [key for key, value in group.items() if isinstance(value, Tensor) and value.is_meta]
        if away:
            raise ValueError(f"{where}: {', '.join(map(str, away))} is on the meta device and has no value")
    return [dict(group) for group in saved["param_groups"]]


def _in_order_of_names(saved: Sequence[Group], groups: Sequence[Group]) -> tuple[list[Group], str | None]:
    """Saved groups in the order of the optimizer's parameters, and a remark where that is a guess.

    Names decide over all groups, where they are all distinct and the same on both sides, but for what wrappers add. A
    group's options come with its names where each group has those of a saved one; else with its place.
    """
    theirs = [list(group.get("param_names") or ()) for group in saved]
    mine = [list(group.get("param_names") or ()) for group in groups]
    kept = [{**group, "param_names": own} if own else group for group, own in zip(saved, mine, strict=True)]
    if theirs == mine or not any(theirs) or not any(mine):
        return kept, None
    flat, own_flat = list(chain(*theirs)), list(chain(*mine))
    strange = sorted(set(flat) - set(own_flat))
    flat, own_flat = _plain(flat), _plain(own_flat)
    pairs = zip((*saved, *groups), (*theirs, *mine), strict=True)
    complete = all(len(called) == len(group["params"]) for group, called in pairs)
    if not complete or set(flat) != set(own_flat) or not len(flat) == len(own_flat) == len(set(flat)):
        return kept, (
            f"the checkpoint's parameters have other names than this optimizer's ({some(strange) or 'or some none'}): "
            "the order alone says which state is whose, as in torch. To be sure, give the optimizer the names that "
            "the checkpoint was saved with, in whichever order"
        )
    keys = dict(zip(flat, [key for group in saved for key in group["params"]], strict=True))
    called = iter(own_flat)
    wanted = [[keys[next(called)] for _ in own] for own in mine]
    sources = {frozenset(group["params"]): group for group in saved}
    whole = all(frozenset(each) in sources for each in wanted)
    return [
        {**(sources[frozenset(each)] if whole else group), "params": each, "param_names": own}
        for group, each, own in zip(saved, wanted, mine, strict=True)
    ], None


def _plain(called: Sequence[str]) -> list[str]:
    """Names without what wrappers put into them, and without the parts in front that all share.

    >>> _plain(["module.a.weight", "module._orig_mod.b.weight"])
    ['a.weight', 'b.weight']
    """
    parts = [[part for part in name.split(".") if part not in _WRAPPERS] for name in called]
    in_front = zip(*(each[:-1] for each in parts), strict=False)
    shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, in_front))
    return [".".join(each[shared:]) for each in parts]


def _check_groups(saved: Sequence[Group], groups: Sequence[Group]) -> None:
    """Refuse groups of other sizes, or with options that are none."""
    for index, (theirs, mine) in enumerate(zip(saved, groups, strict=True)):
        if len(theirs["params"]) != len(mine["params"]):
            raise ValueError(
                f"param group {index} was saved with {len(theirs['params'])} parameters and has "
                f"{len(mine['params'])} here: build the optimizer with the parameters that it was saved with"
            )
        if "state_version" not in theirs:
            raise ValueError(f"param group {index} has no state_version: this state was not saved by jorge.Jorge")
        check({**mine, **theirs}, f"saved param group {index}")


def _reshaped(saved: Sequence[Group], groups: Sequence[Group], defaults: Mapping[str, Any]) -> str | None:
    """A remark on the options that shape the state and are others in the checkpoint."""
    found: dict[str, None] = {}
    for theirs, mine in zip(saved, groups, strict=True):
        own = Options.of({**defaults, **mine})
        new = Options.of({**defaults, **mine, **theirs})
        for name in SHAPING:
            if getattr(own, name) != getattr(new, name) and not _by_device(name, own, new, defaults):
                found[f"{name}={getattr(new, name)!r} (was {getattr(own, name)!r})"] = None
    if not found:
        return None
    return (
        f"the checkpoint was saved with other options, which this optimizer has from now on: {', '.join(found)}. They "
        "shape the state, so that the checkpoint's go first; build the optimizer with the same"
    )


def _by_device(name: str, own: Options, new: Options, defaults: Mapping[str, Any]) -> bool:
    """Whether an option differs only as its default does between devices."""
    pair = {getattr(own, name), getattr(new, name)}
    return name == "block_size" and defaults[name] == "auto" and pair == {"auto", CUDA_BLOCK_SIZE}


def _states(
    saved: Mapping[Any, Any], ordered: Sequence[Group], groups: Sequence[Group], defaults: Mapping[str, Any]
) -> dict[Any, Any]:
    """The saved states by parameter, and what else there is by its key, once all of it fits.

    A parameter without an entry, or with an empty one, had no gradient yet or was cleared: it starts anew.
    """
    places = {
        key: (p, name, Options.of({**defaults, **mine, **theirs}))
        for index, (theirs, mine) in enumerate(zip(ordered, groups, strict=True))
        for key, p, name in zip(theirs["params"], mine["params"], names(mine, index), strict=True)
    }
    found: dict[Any, Any] = {}
    for key, entry in saved.items():
        if key not in places:
            found[key] = entry  # not a parameter's: its owner's
            continue
        p, name, options = places[key]
        if not isinstance(entry, Mapping):
            raise ValueError(f"the saved state of {name} is a {type(entry).__name__}, expected a dict")
        away = [str(each) for each, value in entry.items() if isinstance(value, Tensor) and value.is_meta]
        if away and not p.is_meta:
            raise ValueError(f"the saved {', '.join(away)} of {name} is on the meta device and has no values")
        if entry:
            wanted = layout(tuple(p.shape), p.dtype, options).tensors(tuple(p.shape))
            if any(each in entry for each in wanted) or any(map(is_ours, entry)):
                _check_state(name, entry, wanted, on_meta=p.is_meta)
            found[p] = entry
    return found


def _check_state(name: str, saved: Mapping[str, Any], wanted: Wanted, *, on_meta: bool) -> None:
    """Refuse a parameter's saved state that lacks what is wanted; what else it holds is its owner's."""
    missing = sorted(key for key in [*wanted, "step"] if key not in saved)
    other = sorted(key for key in saved if key not in wanted and is_ours(key))
    if missing or other:
        keys = missing + other
        raise ValueError(
            f"the saved state of {name} does not fit: {', '.join(keys)} {'is' if len(keys) == 1 else 'are'} missing on "
            f"one side. Was the parameter's shape another one, or one of {', '.join(SHAPING)}?"
        )
    for key, (shape, _) in wanted.items():
        if (found := unusable(saved[key], shape, on_meta=on_meta)) is not None:
            raise ValueError(
                f"the saved {key} of {name} is {found}, expected a dense real tensor of shape {shape}: "
                "it belongs to a parameter of another shape, or was saved with another block_size"
            )
        if (found := _bad_values(key, saved[key])) is not None:
            raise ValueError(
                f"the saved {key} of {name} is {found}, and would spoil its weights: load an earlier checkpoint, "
                "or take that parameter's entry out, with which it starts anew"
            )
    try:
        check_step(name, saved["step"])
    except RuntimeError as error:
        raise ValueError(f"the saved state does not fit: {error}") from None


def _bad_values(key: str, value: Tensor) -> str | None:
    """What is wrong with the values of a saved tensor, in words; of a DTensor in all processes."""
    if value.is_meta:  # of what is counted without memory there are no values
        return None
    if not bool(whole(value.isfinite().all())):
        return "not finite"
    is_negative = key.partition(".")[0] in _NEVER_NEGATIVE and not bool(whole(value.ge(0).all()))
    return "negative, which it cannot be" if is_negative else None
