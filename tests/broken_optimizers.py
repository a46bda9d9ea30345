"""An optimizer that does what it should, and others that each lack one property of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from jorge.testing import CHECKS, Factory


class Momentum(torch.optim.Optimizer):
    """SGD with momentum. It passes every check but the one of words, which torch itself does not load."""

    def __init__(self, params: Any, lr: float = 1e-2, momentum: float = 0.9, maximize: bool = False) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = self.evaluate(closure) if closure is not None else None
        for group in self.param_groups:
            self.look_at(group)
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, self.direction(p, p.grad, group), group)
                else:
                    self.without_gradient(p, group)
        return loss

    def evaluate(self, closure: Callable[[], float]) -> float | None:
        with torch.enable_grad():
            return closure()

    def look_at(self, group: dict[str, Any]) -> None:
        """Look at a group before its weights move."""

    def without_gradient(self, p: Tensor, group: dict[str, Any]) -> None:
        """Leave a weight alone."""

    def direction(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        grad = grad.to_dense() if grad.is_sparse else grad
        grad = torch.where(grad.isfinite().all(), grad, 0.0)
        return -grad if group["maximize"] else grad

    def buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p)
        found: Tensor = state["momentum_buffer"]
        return found

    def update(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        buffer = self.buffer(p)
        buffer.mul_(group["momentum"]).add_(direction)
        self.move(p, group["lr"] * buffer)

    def move(self, p: Tensor, by: Tensor) -> None:
        p.sub_(by)


class Uphill(Momentum):
    def direction(self, *given: Any) -> Tensor:
        return -super().direction(*given)


class Decays(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.mul_(0.99).sub_(by)


class Coasts(Momentum):
    def without_gradient(self, p: Tensor, group: dict[str, Any]) -> None:
        p.sub_(group["lr"] * self.buffer(p))


class WantsGradients(Momentum):
    def look_at(self, group: dict[str, Any]) -> None:
        torch.stack([p.grad.sum() for p in group["params"] if p.grad is not None])


class ForgetsTheFrozen(Momentum):
    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.known = {p for group in self.param_groups for p in group["params"] if p.requires_grad}

    def update(self, p: Tensor, *given: Any) -> None:
        if p in self.known:
            super().update(p, *given)


class ScalesGradients(Momentum):
    def direction(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        return super().direction(p, grad.mul_(0.5), group)


class KeepsGradients(Momentum):
    def zero_grad(self, set_to_none: bool = True) -> None:
        super().zero_grad(set_to_none=False)


class EvaluatesWithoutGradients(Momentum):
    def evaluate(self, closure: Callable[[], float]) -> float | None:
        return closure()


class Minimizes(Momentum):
    def direction(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        return super().direction(p, grad, {**group, "maximize": False})


class TracksItsState(Momentum):
    def buffer(self, p: Tensor) -> Tensor:
        return super().buffer(p).requires_grad_()


class MovesData(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.data.sub_(by)


def picky(dims: int) -> Factory:
    class Picky(Momentum):
        def move(self, p: Tensor, by: Tensor) -> None:
            if p.dim() == dims:
                raise RuntimeError("not this one")
            super().move(p, by)

    return Picky


class MakesContiguous(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.data = (p - by).contiguous()


class Flattens(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.view(-1).sub_(by.reshape(-1))


class LooksAtLargest(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.sub_(by / by.abs().max().clamp(min=1))


class MakesFloat32(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.data = (p - by).float()


class MixesGradients(Momentum):
    def look_at(self, group: dict[str, Any]) -> None:
        grads = [p.grad.flatten()[:4] for p in group["params"] if p.grad is not None]
        for first, second in pairwise(grads):
            first.dot(second)


class RemembersMemory(Momentum):
    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.memory = {p: p.data for group in self.param_groups for p in group["params"]}

    def move(self, p: Tensor, by: Tensor) -> None:
        self.memory[p].sub_(by)


class DropsNames(Momentum):
    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__([p[1] if isinstance(p, tuple) else p for p in params], **options)


class ReadsTwice(Momentum):
    def __init__(self, params: Any, **options: Any) -> None:
        assert all(p is not None for p in params)
        super().__init__(params, **options)


class OneLr(Momentum):
    def update(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        super().update(p, direction, {**group, "lr": self.param_groups[0]["lr"]})


class LooksAtTheFirst(Momentum):
    def look_at(self, group: dict[str, Any]) -> None:
        assert group["params"][0].requires_grad is not None


class SavesItsOwnAlone(Momentum):
    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        own = {"params", *self.defaults}
        groups = [{k: v for k, v in group.items() if k in own} for group in saved["param_groups"]]
        return {**saved, "param_groups": groups}


class Trusts(Momentum):
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        self.param_groups.append({**self.defaults, **param_group, "params": list(param_group["params"])})


class ReplacesItsState(Momentum):
    def buffer(self, p: Tensor) -> Tensor:
        buffer = super().buffer(p)
        self.state[p] = {"momentum_buffer": buffer}
        return buffer


class StepsOverItsState(Momentum):
    def look_at(self, group: dict[str, Any]) -> None:
        assert all(p.grad is not None for p in self.state)


class MakesItsStateOnce(Momentum):
    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:
            for p in group["params"]:
                super().buffer(p)

    def buffer(self, p: Tensor) -> Tensor:
        found: Tensor = self.state[p]["momentum_buffer"]
        return found


class AsksWhetherThereIsAState(Momentum):
    def buffer(self, p: Tensor) -> Tensor:
        if not self.state[p]:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        found: Tensor = self.state[p]["momentum_buffer"]
        return found


class HidesItsState(Momentum):
    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.hidden: dict[Tensor, Tensor] = {}

    def buffer(self, p: Tensor) -> Tensor:
        return self.hidden.setdefault(p, torch.zeros_like(p))


class SavesObjects(Momentum):
    def buffer(self, p: Tensor) -> Tensor:
        self.state[p]["options"] = copy.Error
        return super().buffer(p)


class NeedsAState(Momentum):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        assert state_dict["state"][0]
        super().load_state_dict(state_dict)


class KeepsItsLr(Momentum):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.param_groups[0]["lr"] = self.defaults["lr"]


class SavesByName(Momentum):
    def state_dict(self) -> dict[str, Any]:
        saved = super().state_dict()
        return {**saved, "state": {str(key): value for key, value in saved["state"].items()}}


class ClearsFirst(Momentum):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.state.clear()
        super().load_state_dict(state_dict)


class LoadsWithoutCasts(Momentum):
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for p, state in zip(self.param_groups[0]["params"], state_dict["state"].values(), strict=True):
            self.state[p].update(state)

    def update(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        self.move(p, group["lr"] * self.buffer(p).lerp_(direction, 0.5))


class RemembersLr(Momentum):
    def update(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        super().update(p, direction, {**group, "lr": self.defaults["lr"]})


class HoldsMomentum(Momentum):
    def look_at(self, group: dict[str, Any]) -> None:
        assert group["momentum"] == self.defaults["momentum"]


class ShrinksLr(Momentum):
    def update(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        lr = group["lr"]
        lr *= 0.5  # of a tensor this is in place
        super().update(p, direction, {**group, "lr": lr})


class WatchesVersions(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        if self.state[p].get("version", p._version) != p._version:
            self.buffer(p).zero_()
        p.sub_(by)
        self.state[p]["version"] = p._version


class KeepsMasters(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        master = self.state[p].setdefault("master", p.detach().clone())
        p.copy_(master.sub_(by))


class Nameless(Momentum):
    def __repr__(self) -> str:
        return "an optimizer"


#: As long as no instance was made torch has wrapped nothing around it.
_BARE_STEP = Momentum.step


class Unhooked(Momentum):
    @staticmethod
    def profile_hook_step(func: Any) -> Any:
        return func  # torch's runs the hooks around it

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        return _BARE_STEP(self, closure)


class SavesByItself(Momentum):
    def state_dict(self) -> dict[str, Any]:
        indices = iter(range(99))
        groups = [{**group, "params": [next(indices) for _ in group["params"]]} for group in self.param_groups]
        held = [p for group in self.param_groups for p in group["params"]]
        return {"state": {i: self.state[p] for i, p in enumerate(held) if p in self.state}, "param_groups": groups}


class Normalizes(Momentum):
    def direction(self, *given: Any) -> Tensor:
        direction: Tensor = super().direction(*given)
        return direction.div(direction.norm())


class NormalizesByFourth(Momentum):
    def direction(self, *given: Any) -> Tensor:
        direction: Tensor = super().direction(*given)
        return direction.div(direction.pow(4).sum())


class ClaimsToUnscale(Momentum):
    _step_supports_amp_scaling = True


class Multiplies(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.sub_(by @ torch.eye(by.shape[-1]) if by.dim() == 2 else by)


class Differentiates(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        with torch.enable_grad():
            (ones,) = torch.autograd.grad((p * 1.0).sum(), p)
        p.sub_(by * ones)


class TripsOverSparse(Momentum):
    def direction(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        if grad.is_sparse:
            raise RuntimeError("no such layout")
        return super().direction(p, grad, group)


class Improvises(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        generator = torch.Generator()
        generator.seed()
        p.sub_(by * torch.rand(p.shape, generator=generator))


class Draws(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.sub_(by * torch.rand(p.shape))


class ReadsBack(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.sub_(by / max(1.0, by.norm().item()))


class Fragile(Momentum):
    def direction(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        return grad.to_dense() if grad.is_sparse else grad


class HoldsLambdas(Momentum):
    def buffer(self, p: Tensor) -> Tensor:
        self.state[p]["schedule"] = lambda: 1
        return super().buffer(p)


class KeepsItsOwnGroups(Momentum):
    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.own = list(self.param_groups)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        shown, self.param_groups = self.param_groups, self.own
        try:
            return super().step(closure)
        finally:
            self.param_groups = shown


class ViewsGradients(Momentum):
    def direction(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        return super().direction(p, grad.view(-1).view(p.shape), group)


class Hoards(Momentum):
    def buffer(self, p: Tensor) -> Tensor:
        self.state[p].setdefault("history", []).append(0.0)
        return super().buffer(p)


class IsKept(Momentum):
    alive: ClassVar[list[torch.optim.Optimizer]] = []

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, **options)
        self.alive.append(self)


class CountsForAll(Momentum):
    steps = 0

    def update(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        CountsForAll.steps += 1
        super().update(p, direction, {**group, "lr": group["lr"] / CountsForAll.steps})


class TakesTheDefaultDtype(Momentum):
    def update(self, p: Tensor, direction: Tensor, group: dict[str, Any]) -> None:
        self.move(p, group["lr"] * torch.zeros(p.shape).lerp_(direction, 1.0))


class Puts(Momentum):
    def move(self, p: Tensor, by: Tensor) -> None:
        p.put_(torch.arange(p.numel()), p - by)


#: For each check an optimizer that lacks what it checks.
BROKEN: dict[str, Factory] = {
    "least-squares": Uphill,
    "network": Uphill,
    "zero-lr": Decays,
    "missing-gradient": Coasts,
    "no-gradients": WantsGradients,
    "frozen": ForgetsTheFrozen,
    "freezing": Coasts,
    "gradients-kept": ScalesGradients,
    "zero-grad": KeepsGradients,
    "closure": EvaluatesWithoutGradients,
    "maximize": Minimizes,
    "tied-weights": Uphill,
    "leaves": TracksItsState,
    "autograd-notices": MovesData,
    **{f"dims-{dims}": picky(dims) for dims in range(6)},
    "channels-last": MakesContiguous,
    "strided": Flattens,
    "gradients-strided": ViewsGradients,
    "no-elements": LooksAtLargest,
    "float64": MakesFloat32,
    "bfloat16": MakesFloat32,
    "mixed-dtypes": MixesGradients,
    "other-memory": RemembersMemory,
    "named-parameters": DropsNames,
    "generator": ReadsTwice,
    "group-lr": OneLr,
    "added-group": ForgetsTheFrozen,
    "removed-group": KeepsItsOwnGroups,
    "empty-group": LooksAtTheFirst,
    "keys-of-others": SavesItsOwnAlone,
    "given-twice": Trusts,
    "no-parameters": Trusts,
    "entries-of-others": ReplacesItsState,
    "entries-of-nobody": StepsOverItsState,
    "cleared": MakesItsStateOnce,
    "replaced": HidesItsState,
    "size": Hoards,
    "freed": IsKept,
    "early-entries": AsksWhetherThereIsAState,
    "words": Momentum,
    "resume": HidesItsState,
    "resume-from-file": SavesObjects,
    "deepcopied": HidesItsState,
    "pickled": HoldsLambdas,
    "rollback": HidesItsState,
    "before-the-first-step": NeedsAState,
    "options-loaded": KeepsItsLr,
    "layout": SavesByName,
    "unequal-groups": ClearsFirst,
    "other-dtype": LoadsWithoutCasts,
    "doubled": LoadsWithoutCasts,
    **{check.name: RemembersLr for check in CHECKS if check.name.endswith(("LR", "Restarts", "Plateau", "Scheduler"))},
    "stopped-by-schedule": RemembersLr,
    "cycled-momentum": HoldsMomentum,
    "lr-tensor": ShrinksLr,
    "averaged": WatchesVersions,
    "weights-edited": KeepsMasters,
    "kind": Nameless,
    "around-steps": Unhooked,
    "gradients-from-hooks": Unhooked,
    "within-backward": CountsForAll,
    "around-checkpoints": SavesByItself,
    "zero-gradients": Normalizes,
    "sizes-of-gradients": NormalizesByFourth,
    "grad-scaler": ClaimsToUnscale,
    "autocast": Multiplies,
    "inference-mode": Differentiates,
    "default-dtype": TakesTheDefaultDtype,
    "deterministic-algorithms": Puts,
    "sparse": TripsOverSparse,
    "repeated": Improvises,
    "no-draws": Draws,
    "no-waiting": ReadsBack,
    "NaN": Fragile,
    "inf": Fragile,
    "spawned": HoldsLambdas,
}
