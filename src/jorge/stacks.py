"""The optimizer's state as it lies in memory, and the step on it: equal shapes together, so launches stay few.

Two kinds of stack, both persistent:

* a :class:`Bundle` holds what is elementwise (momentum, graft buffers) of parameters of one shape, `[count, *shape]`;
* a :class:`RootStack` holds the roots of all blocks of one shape, `[count, d, d]` a side, whichever parameter they
  come from.

A :class:`Cohort` is the parameters of one group and device that received their first gradient at the same step. Each
parameter counts the steps in which it had a gradient, so a layer that is unfrozen late, or is trained every other step,
has its own warm-up and interval. Readers of the state see no stacks: :meth:`Cohort.views` names per-parameter views.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from jorge import grafting
from jorge.blocks import Blocking, Side, Tile, gather, scatter
from jorge.methods import METHODS, RootOptions, State, direction, initial_state, refresh
from jorge.routing import compute_dtype, route

Group = dict[str, Any]

#: Options that shape the state: they cannot change once it exists.
STRUCTURAL = ("method", "grafting", "block_size", "max_dim", "preconditioner_dtype")


def structure(group: Group) -> tuple[Any, ...]:
    """The options of a group that shape its state."""
    return tuple(group[name] for name in STRUCTURAL)


def is_refresh_step(step: int, *, interval: int, warmup_refreshes: int) -> bool:
    """Whether the `step`-th step (from 1) refreshes the roots: all during warm-up, then every `interval`-th.

    >>> [t for t in range(1, 26) if is_refresh_step(t, interval=10, warmup_refreshes=3)]
    [1, 2, 3, 13, 23]
    """
    return step <= warmup_refreshes or (step - warmup_refreshes) % interval == 0


def refreshes_before(step: int, *, interval: int, warmup_refreshes: int) -> int:
    """How many refreshes the steps before the `step`-th (from 1) have made."""
    return min(step - 1, warmup_refreshes) + max(0, step - 1 - warmup_refreshes) // interval


def _dense_like(param: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Zeros `[count, *shape]` whose every slice has the memory format of `param`."""
    strides = torch.empty_like(param, device="meta").stride()
    flat = torch.zeros(count * param.numel(), dtype=dtype, device=param.device)
    return flat.as_strided((count, *param.shape), (param.numel(), *strides))


class Bundle:
    """Equal-shaped parameters of a cohort with their momentum and graft buffers."""

    def __init__(self, params: list[Tensor], blocking: Blocking | None, group: Group) -> None:
        first = params[0]
        self.params = params
        self.layout = (first.shape, first.dtype)
        self.steps = [0] * len(params)  # steps in which each parameter had a gradient
        self.substeps = [0] * len(params)  # of the refresh that is due at this step, or 0
        self.blocking = blocking
        self.compute = compute_dtype(first.dtype)
        names = grafting.BUFFERS[group["grafting"]] + (("momentum_buffer",) if blocking else ())
        self.buffers = {name: _dense_like(first, len(params), self.compute) for name in names}
        if group["grafting"] == "adam":
            self.buffers["adam_step"] = torch.zeros(len(params), dtype=torch.float32, device=first.device)
        self.present: tuple[bool, ...] = ()
        self._masks: dict[tuple[bool, ...], Tensor] = {}
        self.work = first.new_empty(0)  # the gradient, then the direction, then the update: [count, *shape]
        self.length = first.new_empty(0)  # the norm of the graft optimizer's direction

    @property
    def matrices(self) -> Tensor:
        """The working tensor as `[count, M, N]`."""
        assert self.blocking is not None
        return self.work.view(len(self.params), *self.blocking.matrix)

    def gather(self) -> tuple[list[Tensor], list[Tensor]]:
        """Make room for the gradients: where they go, and where they come from."""
        self.present = tuple(p.grad is not None for p in self.params)
        shape = (len(self.params), *self.params[0].shape)
        room = torch.empty if all(self.present) else torch.zeros
        self.work = room(shape, dtype=self.compute, device=self.params[0].device)
        pairs = [(view, p.grad) for view, p in zip(self.work.unbind(0), self.params, strict=True) if p.grad is not None]
        return [view for view, _ in pairs], [grad for _, grad in pairs]

    def active(self, finite: Tensor) -> Tensor:
        """Which parameters take part: 0-dim where all have a gradient, else `[count, 1, …]`."""
        if all(self.present):
            return finite
        if self.present not in self._masks:
            mask = torch.tensor(self.present, device=finite.device)
            self._masks[self.present] = mask.view(-1, *(1,) * (self.work.dim() - 1))
        return self._masks[self.present] & finite

    def count(self, group: Group) -> None:
        """Advance the counters of the parameters that have a gradient, and see whose roots are due."""
        schedule = {"interval": group["interval"], "warmup_refreshes": group["warmup_refreshes"]}
        method = METHODS[group["method"]]
        for i, present in enumerate(self.present):
            self.steps[i] += present
            due = present and is_refresh_step(self.steps[i], **schedule)
            earlier = refreshes_before(self.steps[i], **schedule)
            self.substeps[i] = method.substeps_at(earlier, group["interval"]) if due else 0

    def graft(self, active: Tensor, group: Group) -> None:
        """Advance the graft optimizer; a vector's update is its direction, a matrix needs only the length."""
        if group["grafting"] == "sgd":
            buffer = self.buffers["graft_momentum_buffer"]
            step = grafting.sgd(buffer, self.work, active, momentum=group["momentum"], nesterov=group["nesterov"])
        else:
            names = ("exp_avg", "exp_avg_sq", "adam_step")
            exp_avg, exp_avg_sq, steps = (self.buffers[name] for name in names)
            step = grafting.adam(exp_avg, exp_avg_sq, steps, self.work, active, betas=group["betas"], eps=group["eps"])
        if self.blocking is None:
            self.work = step * active
        else:
            self.length = grafting.norms(step)

    def momentum(self, active: Tensor, group: Group) -> None:
        """Turn the direction into the update: `M ← μM + (1−μ)D`, then the graft optimizer's length.

        With Nesterov momentum the update looks ahead once more, as the graft's does: `μM + (1−μ)D`.
        """
        mu = group["momentum"]
        buffer = self.buffers["momentum_buffer"]
        buffer.mul_(grafting.fading(active, mu, buffer.dtype)).add_(self.work, alpha=1 - mu)
        ahead = self.work.mul_(1 - mu).add_(buffer, alpha=mu) if group["nesterov"] else self.work.copy_(buffer)
        self.work = grafting.rescale(ahead, self.length, active)


class RootStack:
    """The roots of all blocks of one shape in a cohort, `[count, d, d]` a full side and `[count, d]` a diagonal one."""

    def __init__(self, members: list[tuple[Bundle, Tile]], sides: tuple[Side, Side], group: Group) -> None:
        bundle, tile = members[0]
        self.members = members
        self.sizes = [len(b.params) * t.blocks for b, t in members]
        self.state: State = initial_state(
            group["method"],
            sum(self.sizes),
            tile.shape,
            sides,
            dtype=group["preconditioner_dtype"] or bundle.compute,
            device=bundle.params[0].device,
        )

    def precondition(self, group: Group, options: RootOptions) -> None:
        """Refresh the roots that are due and replace the gradients of the members by their directions."""
        parts = [gather(bundle.matrices, tile) for bundle, tile in self.members]
        grad = parts[0] if len(parts) == 1 else torch.cat(parts)
        for substeps, due in self._due(grad):
            refresh(group["method"], self.state, due, options, substeps=substeps)
        for (bundle, tile), part in zip(
            self.members, torch.split(direction(self.state, grad), self.sizes), strict=True
        ):
            if bundle.blocking is not None and bundle.blocking.blocks == 1:
                bundle.work = part.view_as(bundle.work)
            else:
                scatter(part, bundle.matrices, tile)

    def _due(self, grad: Tensor) -> list[tuple[int, Tensor]]:
        """Substeps and gradients of the refreshes of this step: one, unless parameters have missed gradients.

        Blocks whose parameter is not due see a gradient of zero, which leaves their roots alone; a parameter without
        a gradient has that already.
        """
        present = {s for bundle, _ in self.members for s, p in zip(bundle.substeps, bundle.present, strict=True) if p}
        if len(present) == 1:
            return [(substeps, grad) for substeps in present if substeps]
        mine = [s for bundle, tile in self.members for s in bundle.substeps for _ in range(tile.blocks)]
        masks = ((s, torch.tensor([s == t for t in mine], device=grad.device)) for s in sorted(present - {0}))
        return [(s, grad.masked_fill(~mask.view(-1, 1, 1), 0)) for s, mask in masks]


class Cohort:
    """Parameters of one group and device with the same first step: their stacks and their step."""

    def __init__(self, index: int, group: Group, params: Sequence[Tensor]) -> None:
        self.group_index = index
        self.structure = structure(group)
        self.params = list(params)
        self.device = self.params[0].device
        alike: defaultdict[Any, list[Tensor]] = defaultdict(list)
        for p in self.params:
            alike[p.shape, p.dtype, torch.empty_like(p, device="meta").stride()].append(p)
        self.bundles: list[Bundle] = []
        shapes: defaultdict[Any, list[tuple[Bundle, Tile]]] = defaultdict(list)
        for members in alike.values():
            decision = route(tuple(members[0].shape), block_size=group["block_size"], max_dim=group["max_dim"])
            bundle = Bundle(members, decision.blocking, group)
            self.bundles.append(bundle)
            for tile in decision.blocking.tiles if decision.blocking else ():
                assert decision.blocking is not None
                kinds = (decision.blocking.left, decision.blocking.right)
                shapes[tile.shape, kinds, bundle.compute].append((bundle, tile))
        self.stacks = [RootStack(members, kinds, group) for (_, kinds, _), members in shapes.items()]

    def steps(self) -> dict[Tensor, int]:
        """How many steps each parameter has taken part in."""
        return {p: step for bundle in self.bundles for p, step in zip(bundle.params, bundle.steps, strict=True)}

    def set_steps(self, steps: dict[Tensor, int]) -> None:
        """Set the counters, after loading."""
        for bundle in self.bundles:
            bundle.steps = [steps[p] for p in bundle.params]

    def views(self) -> dict[Tensor, dict[str, Any]]:
        """State of each parameter: its step and named views into the stacks.

        `left.i` and `right.i` (and, by method, `left_factor.i`, `left_moment.i`, …) belong to block i, row by row.
        """
        found: dict[Tensor, dict[str, Any]] = {p: {"step": step} for p, step in self.steps().items()}
        for bundle in self.bundles:
            for name, buffer in bundle.buffers.items():
                for p, view in zip(bundle.params, buffer.unbind(0), strict=True):
                    found[p][name] = view
        for stack in self.stacks:
            offset = 0
            for bundle, tile in stack.members:
                assert bundle.blocking is not None
                for p in bundle.params:
                    for i in range(tile.blocks):
                        row, column = divmod(i, tile.grid[1])
                        block = (tile.first[0] + row) * bundle.blocking.grid[1] + tile.first[1] + column
                        for name, tensor in stack.state.items():
                            found[p][f"{name}.{block}"] = tensor[offset]
                        offset += 1
        return found

    def gather(self, *, maximize: bool) -> Tensor | None:
        """Copy the gradients in; a 0-dim boolean, whether all are finite, or `None` where there is no gradient."""
        if all(p.grad is None for p in self.params):
            return None
        rooms, grads = [], []
        for bundle in self.bundles:
            room, grad = bundle.gather()
            rooms += room
            grads += grad
        torch._foreach_copy_(rooms, grads)
        if maximize:
            torch._foreach_neg_([bundle.work for bundle in self.bundles])
        return torch.isfinite(torch.stack(torch._foreach_norm([bundle.work for bundle in self.bundles]))).all()

    def advance(self, group: Group, finite: Tensor) -> None:
        """One step of the parameters that have a gradient; none of them moves where `finite` is false."""
        options = RootOptions(group["preconditioner_beta2"], group["damping"], group["init"], group["root_eps"])
        active = [bundle.active(finite) for bundle in self.bundles]
        for bundle, mask in zip(self.bundles, active, strict=True):
            bundle.count(group)
            bundle.work.masked_fill_(~finite, 0)
            bundle.graft(mask, group)
        for stack in self.stacks:
            stack.precondition(group, options)
        for bundle, mask in zip(self.bundles, active, strict=True):
            if bundle.blocking is not None:
                bundle.momentum(mask, group)
        self._write(group, finite)
        for bundle in self.bundles:
            bundle.work = bundle.work.new_empty(0)

    def _write(self, group: Group, finite: Tensor) -> None:
        """`W ← W − lr·λ·W − lr·U`, rounded once where the parameters are of lower precision than the arithmetic."""
        lr, decay = group["lr"], group["weight_decay"]
        params: list[Tensor] = []
        updates: list[Tensor] = []
        scale = 1.0 if isinstance(lr, Tensor) else lr
        for bundle in self.bundles:
            rate = lr
            if isinstance(lr, Tensor):  # alpha= takes no tensor, and reading it back would wait for the device
                rate = lr.reshape(()).to(bundle.compute)
                bundle.work.mul_(rate)
            keep = grafting.fading(finite, 1 - rate * decay, bundle.compute) if decay else None
            pairs = zip(bundle.params, bundle.work.unbind(0), bundle.present, strict=True)
            chosen = [(p, update) for p, update, present in pairs if present]
            some, steps = [p for p, _ in chosen], [update for _, update in chosen]
            if some and some[0].dtype != bundle.compute:
                wide = [p.to(bundle.compute) for p in some]
                if keep is not None:
                    torch._foreach_mul_(wide, keep)
                torch._foreach_add_(wide, steps, alpha=-scale)
                torch._foreach_copy_(some, wide)
                continue
            if keep is not None:
                torch._foreach_mul_(some, keep)
            params += some
            updates += steps
        if params:
            torch._foreach_add_(params, updates, alpha=-scale)
