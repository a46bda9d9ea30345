"""How an optimizer is saved, loaded, copied and pickled: the state's views as tensors of their own, and back."""

from __future__ import annotations

import warnings
from collections import defaultdict
from itertools import chain, zip_longest
from multiprocessing.context import get_spawning_popen
from typing import Any

import torch
from torch import Tensor

from jorge import checkpoints, validation
from jorge.exchange.domains import Distribution
from jorge.options import Options
from jorge.skips import SkipCounter
from jorge.store import Store


class Saves(torch.optim.Optimizer):
    """What of :class:`jorge.Jorge` is about checkpoints and copies."""

    distribution: Distribution
    _store: Store
    _skips: SkipCounter
    _read: dict[int, tuple[list[Any], Options]]
    _told_of_flat: bool

    def _options(self) -> list[Options]:
        """Those of each param group."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with tensors that own their memory: per parameter, without a trace of how they were stacked.

        A parameter that is in no param group has no place there: its state stays in the optimizer, with a warning.
        """
        left_out = self._of_no_group()
        try:
            packed = super().state_dict()
        finally:
            self.state.update(left_out)
        apart = self._store.saved(self.state)
        keys = chain.from_iterable(group["params"] for group in packed["param_groups"])
        params = chain.from_iterable(group["params"] for group in self.param_groups)
        saved = {key: apart[p] for key, p in zip(keys, params, strict=True) if p in apart}
        packed["state"] = {key: saved.get(key) or _owned(value) for key, value in packed["state"].items()}
        packed["param_groups"] = [_owned(group) for group in packed["param_groups"]]
        return packed

    def _of_no_group(self) -> dict[Tensor, Any]:
        """Take the entries out of the state whose parameters no group has any more; torch's saving stops at these."""
        here = {p for group in self.param_groups for p in group["params"]}
        keys = [key for key in self.state if isinstance(key, Tensor) and key not in here]
        if keys:
            shapes = validation.some([str(tuple(key.shape)) for key in keys])
            warnings.warn(
                f"not in the checkpoint: optimizer.state of {len(keys)} parameter{'s' * (len(keys) > 1)} that no param "
                f"group has, of shape {shapes}. Put the group back before you save, or delete optimizer.state[p]",
                stacklevel=validation.levels_to_the_caller(),
            )
        return {key: self.state.pop(key) for key in keys}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; dtypes and devices of the state are kept right, and a failed call changes nothing.

        Tensors that are there, of the state and of a learning rate, take the values over and stay where they are. Where
        both sides have the same names, these say which state is whose, over all groups; else the order does, as in
        torch. Options are the checkpoint's. Names that differ, and options that shape the state and do, are a warning.

        Raises:
            ValueError: groups that do not match, a state of another layout or version or that is not finite.
        """
        seen: list[checkpoints.Checkpoint] = []

        def look(_: torch.optim.Optimizer, final: dict[str, Any]) -> dict[str, Any]:
            seen.append(checkpoints.read(final, self.param_groups, self.defaults))
            return seen[-1].packed

        if not isinstance(state_dict, dict):
            raise ValueError(f"load_state_dict() takes what state_dict() returned, got a {type(state_dict).__name__}")
        handle = self.register_load_state_dict_pre_hook(look)  # the last hook sees what the others made
        try:
            self._incoming = seen
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            del self._incoming
        for remark in seen[-1].remarks:
            warnings.warn(remark, stacklevel=validation.levels_to_the_caller())

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state = {**state, "_distributed": self.distribution.copied()}
        if get_spawning_popen() is not None:
            # A process that is being started gets file descriptors of the memory, which has to outlive the pickling.
            if self._store.is_apart:
                raise RuntimeError("parts of the state lie in other processes: give what is started a checkpoint")
            return state
        apart = self._store.saved(self.state)
        return {**state, "state": {key: apart.get(key) or _owned(value) for key, value in self.state.items()}}

    @torch.no_grad()
    def __setstate__(self, state: dict[str, Any]) -> None:
        # Torch casts a state that it loads to the parameters' dtypes; what `load_state_dict` has seen is as saved.
        seen = self.__dict__.get("_incoming")
        incoming = seen[-1].state if seen else state["state"]
        before = self.__dict__.get("param_groups", [])
        distributed = state.pop("_distributed", ("auto",))
        super().__setstate__({**state, "state": self.__dict__.get("state", defaultdict(dict))})
        for group, mine in zip_longest(self.param_groups, before, fillvalue=self.defaults):
            for name in self.defaults:  # a checkpoint of an earlier version lacks the options that came later
                if name != "differentiable":  # torch adds it to the defaults of what it unpickles or loads
                    group.setdefault(name, mine.get(name, self.defaults[name]))
        _keep_places(self.param_groups, before)
        self._read = {}
        if "_store" not in self.__dict__:
            self._store, self._skips = Store(), SkipCounter()
            self._told_of_flat = True  # by the one that it is a copy of
            self.distribution = Distribution(*distributed)
        self._skips.begin_anew()
        self._store.load(incoming, self.param_groups, self._options(), self.distribution, self.state)


def _keep_places(groups: list[dict[str, Any]], before: list[dict[str, Any]]) -> None:
    """Write what was loaded into the learning rates that were tensors, and leave these where they are.

    A captured graph reads them at their addresses, and who made them changes them there. Groups that shared one and
    are to have different ones get their own.
    """
    held = [mine["lr"] for mine in before]
    loaded = [float(group["lr"]) for group in groups[: len(held)]]
    for group, tensor, value in zip(groups, held, loaded, strict=False):
        if isinstance(tensor, Tensor):
            sharing = {other for other, mine in zip(loaded, held, strict=False) if mine is tensor}
            if len(sharing) == 1:
                group["lr"] = tensor.fill_(value)


def _owned(entry: Any) -> Any:
    """A copy of an entry of the state, or of a saved group, whose tensors own their memory."""
    if not isinstance(entry, dict):
        return entry
    return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in entry.items()}
