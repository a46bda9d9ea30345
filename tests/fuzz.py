"""Random lives of an optimizer: whatever happens in whichever order, some things always hold.

`python -m tests.fuzz --minutes 10` goes on for so long, with new lives each time, and prints how many there were; the
first that breaks a promise is shortened and printed. `test_fuzz.py` runs some in the tests.
"""

from __future__ import annotations

import argparse
import copy
import io
import math
import pickle
import time
from typing import Any

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor, nn

from jorge import Jorge
from jorge.methods import METHODS

SHAPES = [(6, 4), (4, 6), (5,), (3, 2, 2), (7, 1), (1,), (), (9, 9), (2, 3, 5), (0, 3)]
DTYPES = (torch.float32, torch.float64, torch.bfloat16)
#: What a parameter's gradient is in a step: a power of ten, zeros, none, or numbers that are none.
KINDS: list[float | str] = [0.0, 0.0, 0.0, 3.0, -3.0, 12.0, -12.0, -30.0, "zero", "none", "none", "rank 1"]
BAD = ("nan", "inf", "-inf")
#: Options that may change at any time, and some values.
CHANGES: dict[str, list[Any]] = {
    "lr": [0.0, 1e-4, 1e-2],
    "momentum": [None, 0.0, 0.9],
    "nesterov": [None, True, False],
    "weight_decay": [0.0, 0.1],
    "graft_limit": [None, 1.0, 2.0],
    "betas": [(0.9, 0.999), (0.0, 0.9)],
    "eps": [0.0, 1e-8],
    "interval": [1, 3, 5],
    "warmup_refreshes": [0, 2, 20],
    "preconditioner_beta2": [0.5, 0.95],
    "degree": [1, 2],
    "stagger": [False, True],
    "workspace": [None, 1.0, 1e-6],
    "maximize": [False, True],
}
#: Options that the optimizer is built with.
SHAPING: dict[str, list[Any]] = {
    "method": list(METHODS),
    "grafting": ["adam", "sgd"],
    "block_size": ["auto", 3, None],
    "max_dim": [None, 5],
    "beta2_decay": [-0.8, None],
    "graft_norm": ["schatten", "frobenius"],
    "adapt_variance": [True, False],
    "preconditioner_dtype": [None, torch.bfloat16],
}

seeds = st.integers(0, 2**20)


def picked(options: dict[str, list[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the options, each with one of its values."""
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in options.items()})


def gradient(p: Tensor, kind: float | str, seed: int) -> Tensor | None:
    """A parameter's gradient of a kind."""
    if kind == "none":
        return None
    found = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if kind == "zero":
        found = torch.zeros_like(found)
    elif kind == "rank 1":
        found = found.mean(-1, keepdim=True).expand_as(found) if found.dim() else found
    elif isinstance(kind, str):
        found.reshape(-1)[:1] = float(kind)
    else:
        found = found * 10.0**kind
    return found.to(p.dtype)


def tensors(entry: dict[str, Any]) -> list[Tensor]:
    return [value for value in entry.values() if isinstance(value, Tensor)]


def alike(one: Any, other: Any) -> bool:
    """Whether two states are the same to the bit."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    return bool(one == other)


class Life(RuleBasedStateMachine):
    """One optimizer from its first step to its last, and what it should have counted."""

    params: list[nn.Parameter]
    optimizer: Jorge

    @initialize(options=picked(SHAPING), others=picked(CHANGES), named=st.booleans(), seed=seeds)
    def build(self, options: dict[str, Any], others: dict[str, Any], named: bool, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.params = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES[:4]]
        self.named = named
        first, second = self.listed(self.params[:2], 0), self.listed(self.params[2:], 2)
        groups = [{"params": first, **others}, {"params": second, "tag": "mine"}]
        self.optimizer = Jorge(groups, max_consecutive_skips=None, **options)
        self.steps = dict.fromkeys(self.params, 0)
        self.skipped = 0
        self.scheduler: torch.optim.lr_scheduler.LRScheduler | None = None

    def listed(self, params: list[nn.Parameter], start: int) -> list[Any]:
        return [(f"p{start + i}", p) for i, p in enumerate(params)] if self.named else list(params)

    # --- what may happen ----------------------------------------------------------------------------------------------

    def backward(self, kinds: list[float | str], seed: int) -> None:
        for i, p in enumerate(self.params):
            p.grad = gradient(p, kinds[i % len(kinds)], seed + i)

    @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5), seed=seeds, times=st.integers(1, 4))
    def steps_are_taken(self, kinds: list[float | str], seed: int, times: int) -> None:
        for time_ in range(times):
            self.backward(kinds, seed + 100 * time_)
            before = [None if p.grad is None else p.grad.clone() for p in self.params]
            self.optimizer.step()
            for p, grad in zip(self.params, before, strict=True):
                assert alike(p.grad, grad)
                self.steps[p] += p.grad is not None and p.numel() > 0

    @rule(kind=st.sampled_from(BAD), which=st.integers(0, 9), seed=seeds)
    def a_gradient_is_not_finite(self, kind: str, which: int, seed: int) -> None:
        self.backward([0.0], seed)
        sick = self.params[which % len(self.params)]
        if not sick.numel():
            return
        sick.grad = gradient(sick, kind, seed)
        weights = [p.detach().clone() for p in self.params]
        states = copy.deepcopy([dict(self.optimizer.state[p]) for p in self.params])
        self.optimizer.step()
        assert alike(weights, [p.detach() for p in self.params])
        for p, state in zip(self.params, states, strict=True):
            state.pop("step", None)
            now = {key: self.optimizer.state[p][key] for key in state}
            if "schatten_scale" in state:  # follows from `quartics`: in a dtype that is new it is rounded anew
                torch.testing.assert_close(state.pop("schatten_scale"), now.pop("schatten_scale"), rtol=1e-6, atol=0)
            assert alike(state, now)
            self.steps[p] += p.numel() > 0
        self.skipped += 1

    @rule(index=st.integers(0, 5), options=picked(CHANGES))
    def options_change(self, index: int, options: dict[str, Any]) -> None:
        groups = self.optimizer.param_groups
        groups[index % len(groups)].update(options)

    @rule(options=picked(CHANGES), shape=st.sampled_from(SHAPES), shaping=picked(SHAPING), seed=seeds)
    @precondition(lambda self: len(self.params) < 10)
    def a_group_is_added(self, options: Any, shape: tuple[int, ...], shaping: Any, seed: int) -> None:
        p = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.params[0].dtype))
        self.optimizer.add_param_group({"params": self.listed([p], len(self.params)), **shaping, **options})
        self.params.append(p)
        self.steps[p] = 0
        self.scheduler = None  # it has as many rates as there were groups

    @rule()
    def groups_change_places(self) -> None:
        self.optimizer.param_groups.reverse()
        self.scheduler = None

    @rule(index=st.integers(0, 9))
    def a_state_is_cleared(self, index: int) -> None:
        p = self.params[index % len(self.params)]
        self.optimizer.state[p].clear()
        self.steps[p] = 0

    @rule(index=st.integers(0, 9))
    def an_owner_keeps_something_in_it(self, index: int) -> None:
        self.optimizer.state[self.params[index % len(self.params)]]["note"] = torch.ones(2)

    @rule(dtype=st.sampled_from(DTYPES))
    def the_model_gets_another_dtype(self, dtype: torch.dtype) -> None:
        for p in self.params:
            p.grad, p.data = None, p.data.to(dtype)
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    @rule(kind=st.sampled_from(["step", "cosine", "one cycle"]))
    def a_scheduler_is_there(self, kind: str) -> None:
        if self.scheduler is None:
            for group in self.optimizer.param_groups:
                group.pop("initial_lr", None)
            made = torch.optim.lr_scheduler
            if kind == "step":
                self.scheduler = made.StepLR(self.optimizer, 2)
            elif kind == "cosine":
                self.scheduler = made.CosineAnnealingLR(self.optimizer, 5)
            else:
                self.scheduler = made.OneCycleLR(self.optimizer, 1e-2, total_steps=1000, cycle_momentum=False)
        self.scheduler.step()

    @rule()
    def somebody_looks(self) -> None:
        before = copy.deepcopy(self.optimizer.state_dict())
        seen = self.optimizer.diagnostics()
        assert all(isinstance(value, float) for value in seen.flat().values())
        assert seen.overall["skipped_steps"] == self.skipped
        assert len(self.optimizer.plan().rows) == len(self.params)
        assert alike(before, self.optimizer.state_dict())

    # --- copies that go on alike --------------------------------------------------------------------------------------

    def twin(self, how: str) -> tuple[list[nn.Parameter], Jorge]:
        """The same parameters and optimizer again, by one of the ways that there are."""
        if how == "deepcopy":
            return copy.deepcopy((self.params, self.optimizer))
        if how == "pickle":
            params, optimizer = pickle.loads(pickle.dumps((self.params, self.optimizer)))
            return params, optimizer
        params = [nn.Parameter(p.detach().clone()) for p in self.params]
        mine = dict(zip(self.params, params, strict=True))
        file = io.BytesIO()
        torch.save(self.optimizer.state_dict(), file)
        file.seek(0)
        groups = []
        for group in self.optimizer.param_groups:
            names = group.get("param_names")
            own: list[Any] = [mine[p] for p in group["params"]]
            groups.append({"params": list(zip(names, own, strict=True)) if names else own})
        # Where refreshes are staggered, the order says which blocks have theirs when.
        staggered = any(group["stagger"] for group in self.optimizer.param_groups)
        if how == "another order" and self.named and not staggered:
            for group in groups:
                group["params"].reverse()
        shaping = {name: self.optimizer.defaults[name] for name in SHAPING}
        optimizer = Jorge(groups, max_consecutive_skips=None, **shaping)
        for group, made in zip(self.optimizer.param_groups, optimizer.param_groups, strict=True):
            made.update({name: group[name] for name in SHAPING})  # what the checkpoint says of them, it warns of
        optimizer.load_state_dict(torch.load(file, weights_only=True))
        return params, optimizer

    @rule(
        how=st.sampled_from(["deepcopy", "pickle", "load", "another order"]),
        kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=5),
        seed=seeds,
        stays=st.booleans(),
    )
    def a_copy_goes_on_to_the_bit(self, how: str, kinds: list[float | str], seed: int, stays: bool) -> None:
        params, optimizer = self.twin(how)
        self.steps_are_taken(kinds, seed, 3)
        for time_ in range(3):
            for i, p in enumerate(params):
                p.grad = gradient(p, kinds[i % len(kinds)], seed + 100 * time_ + i)
            optimizer.step()
        assert alike([p.detach() for p in self.params], [p.detach() for p in params])
        # A copy that has not seen a gradient of a parameter may have an empty entry more.
        states = [
            [made.state.get(p, {}) for p in own] for made, own in ((self.optimizer, self.params), (optimizer, params))
        ]
        assert alike(*states)
        if how in ("load", "another order"):
            assert optimizer.skipped_steps().total == 0
        if stays:
            self.steps = {p: self.steps[q] for p, q in zip(params, self.params, strict=True)}
            self.params, self.optimizer, self.scheduler = params, optimizer, None
            self.skipped = optimizer.skipped_steps().total

    @rule(where=st.sampled_from(["step", "exp_avg", "left.0", "group", "empty"]), index=st.integers(0, 9))
    def a_bad_checkpoint_changes_nothing(self, where: str, index: int) -> None:
        saved = copy.deepcopy(self.optimizer.state_dict())
        before = copy.deepcopy(saved)
        entries = [entry for entry in saved["state"].values() if isinstance(entry, dict) and where in entry]
        if where == "group":
            saved["param_groups"][0]["lr"] = math.nan
        elif where == "empty":
            saved = {}
        elif entries:
            entries[index % len(entries)][where] = None
        else:
            return
        try:
            self.optimizer.load_state_dict(saved)
        except ValueError:
            assert alike(before, self.optimizer.state_dict())
        else:
            raise AssertionError(f"loaded with {where} spoilt")

    # --- what always holds --------------------------------------------------------------------------------------------

    @invariant()
    def all_is_finite(self) -> None:
        assert all(bool(p.isfinite().all()) for p in self.params)
        for p in self.params:
            assert all(bool(value.isfinite().all()) for value in tensors(self.optimizer.state.get(p, {})))

    @invariant()
    def counts_are_right(self) -> None:
        assert self.optimizer.skipped_steps().total == self.skipped
        for p in self.params:
            assert self.optimizer.state.get(p, {}).get("step", 0) == self.steps[p]


def fuzz(minutes: float, examples: int = 20, length: int = 30) -> int:
    """Run lives for so long; how many there were."""
    end, lives = time.monotonic() + 60 * minutes, 0
    chosen = settings(
        max_examples=examples,
        stateful_step_count=length,
        deadline=None,
        derandomize=False,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    while time.monotonic() < end:
        run_state_machine_as_test(Life, settings=chosen)
        lives += examples
    return lives


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="for how long (default: 10)")
    torch.set_num_threads(1)
    print(f"{fuzz(parser.parse_args().minutes)} lives, and no promise was broken")


if __name__ == "__main__":
    main()
