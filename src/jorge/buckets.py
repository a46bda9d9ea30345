"""Bundles of parameters with the stacks of their blocks, and the step that they take together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor

from jorge import grafting
from jorge.blocks import Side
from jorge.bundles import Bundle
from jorge.grafting import Active
from jorge.methods import METHODS, RootOptions
from jorge.roots import Precision
from jorge.stacks import Due, Member, RootStack

Group = dict[str, Any]


class Bucket:
    """Bundles of one arithmetic dtype that are worked on together, and the stacks of their blocks."""

    def __init__(self, bundles: Sequence[Bundle], group: Group) -> None:
        self.vectors = [bundle for bundle in bundles if bundle.blocking is None]
        self.matrices = [bundle for bundle in bundles if bundle.blocking is not None]
        self.bundles = self.vectors + self.matrices
        self.compute, self.device = bundles[0].compute, bundles[0].params[0].device
        found: defaultdict[tuple[tuple[int, int], tuple[Side, Side]], list[Member]] = defaultdict(list)
        for bundle in self.matrices:
            assert bundle.blocking is not None
            for tile in bundle.blocking.tiles:
                found[tile.shape, (bundle.blocking.left, bundle.blocking.right)].append(Member(bundle, tile, False))
        for (shape, sides), members in list(found.items()):
            turned = (shape[::-1], sides[::-1])
            # Its transposed twin takes it in: L and R change places, and would be transposed were they not symmetric.
            if shape[0] > shape[1] and turned in found and METHODS[group["method"]].symmetric:
                found[turned] += [Member(member.bundle, member.tile, True) for member in members]
                del found[shape, sides]
        self.stacks = [RootStack(members, shape, sides, group) for (shape, sides), members in found.items()]
        #: What is one number or two for each parameter lies in one tensor: the lengths of matrices' steps
        #: (:func:`grafting.limited`), and Adam's steps.
        self.history, self.adam_steps = None, None
        if group["grafting"] == "sgd" and self.matrices:
            self.history = self._shared("graft_length", self.matrices, (2,), self.compute)
        elif group["grafting"] == "adam":
            self.adam_steps = self._shared("adam_step", self.bundles, (), torch.float32)
        self._compiled: Callable[..., None] | None = None

    def compiled(self) -> Callable[..., None]:
        """:meth:`step` through `torch.compile`: one graph for each kind of step (see :class:`~jorge.methods.Pace`)."""
        if self._compiled is None:
            plain = Bucket.step  # a code object of its own, as the limit on recompilations counts by code object
            own = FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__)
            self._compiled = torch.compile(MethodType(own, self), dynamic=False)
        return self._compiled

    def _shared(self, name: str, bundles: Sequence[Bundle], shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Zeros `[total, *shape]`, of which each bundle has its part as a buffer."""
        sizes = [len(bundle.params) for bundle in bundles]
        whole = torch.zeros(sum(sizes), *shape, dtype=dtype, device=self.device)
        for bundle, part in zip(bundles, torch.split(whole, sizes), strict=True):
            bundle.buffers[name] = part
        return whole

    def gather(self, grads: Sequence[Sequence[Tensor]], finite: Tensor, *, maximize: bool) -> dict[Bundle, Tensor]:
        """The gradients, copied to where they can be worked on; zero where there is none or not all are finite."""
        works: dict[Bundle, Tensor] = {}
        rooms: list[Tensor] = []
        for bundle in self.bundles:
            make = torch.empty if all(bundle.present) else torch.zeros
            works[bundle] = work = make((len(bundle.params), *bundle.layout[0]), dtype=self.compute, device=self.device)
            rooms += [view for view, present in zip(work.unbind(0), bundle.present, strict=True) if present]
        torch._foreach_copy_(rooms, [grad for some in grads for grad in some])
        if maximize:
            torch._foreach_neg_(list(works.values()))
        _clear(list(works.values()), finite)
        return works

    def step(
        self,
        grads: Sequence[Sequence[Tensor]],
        masks: Sequence[Tensor | None],
        due: Sequence[Sequence[Due]],
        finite: Tensor,
        group: Group,
    ) -> None:
        """One step of the parameters that have a gradient; none of them moves where `finite` is false.

        Reads nothing that changes from step to step but its arguments, so that it can be compiled.

        Args:
            grads: of each bundle, those that there are.
            masks: of each bundle, who has a gradient; `None` where all have one.
            due: of each stack, what is refreshed.
            finite: 0-dim boolean.
            group: options of the param group; its numbers may be 0-dim tensors.
        """
        works = self.gather(grads, finite, maximize=group["maximize"])
        take = finite.to(self.compute)
        active = grafting.Active(take, masks)
        moving = grafting.Active(take, masks[len(self.vectors) :])  # of the matrices
        lengths = self._graft(works, finite, active, moving, group)
        refresh_precision, direction_precision = precisions(group)
        options = RootOptions(
            group["preconditioner_beta2"],
            group["damping"],
            group["init"],
            group["root_eps"],
            group["degree"],
            refresh_precision,
        )
        for stack, pieces in zip(self.stacks, due, strict=True):
            stack.precondition(works, pieces, group["method"], options, direction_precision)
        if lengths is not None:
            self._update(works, lengths, moving, group)
        self._write(works, take, group)

    def _graft(
        self, works: dict[Bundle, Tensor], finite: Tensor, active: Active, moving: Active, group: Group
    ) -> Tensor | None:
        """Advance the graft optimizer by the gradients: the updates of vectors, and the lengths of matrices' steps."""
        grads, bundles = list(works.values()), self.bundles
        correction = None
        if self.adam_steps is None:
            buffers = [bundle.buffers["graft_momentum_buffer"] for bundle in bundles]
            momentum, nesterov = group["momentum"], group["nesterov"]
            directions = grafting.sgd(buffers, grads, active, momentum=momentum, nesterov=nesterov)
        else:
            directions, correction = grafting.adam(
                [bundle.buffers["exp_avg"] for bundle in bundles],
                [bundle.buffers["exp_avg_sq"] for bundle in bundles],
                self.adam_steps,
                grads,
                active,
                betas=group["betas"],
                eps=group["eps"],
                beta2_decay=group["beta2_decay"],
                nesterov=group["nesterov"],
                matrices=[bundle.blocking is not None for bundle in bundles],  # vectors take Adam's own step
            )
        count = sum(len(bundle.params) for bundle in self.vectors)
        vectors, matrices = directions[: len(self.vectors)], directions[len(self.vectors) :]
        if vectors:
            scales = [1.0] * len(vectors) if correction is None else grafting.per_parameter(correction[:count], vectors)
            updates = torch._foreach_mul(vectors, scales)
            _clear(updates, finite)
            works.update(zip(self.vectors, updates, strict=True))
        if not matrices:
            return None
        lengths = grafting.norms(matrices)
        if correction is not None:
            lengths.mul_(correction[count:])
        if self.history is not None and group["graft_limit"] is not None:
            lengths = grafting.limited(lengths, self.history, moving.each(matrices), group["graft_limit"])
        return lengths

    def _update(self, works: dict[Bundle, Tensor], lengths: Tensor, moving: Active, group: Group) -> None:
        """The matrices' updates from their directions, of the graft's `lengths`: `M ← μM + (1−μ)D`.

        With Nesterov momentum the update looks ahead once more, as the graft's does: `μM + (1−μ)D`.
        """
        directions = [works[bundle] for bundle in self.matrices]
        buffers = [bundle.buffers["momentum_buffer"] for bundle in self.matrices]
        grafting.average(buffers, directions, moving, group["momentum"])
        if group["nesterov"]:
            grafting.blend(directions, buffers, group["momentum"])
        aheads = directions if group["nesterov"] else buffers
        ratios = grafting.per_parameter(grafting.ratios(aheads, lengths) * moving.each(aheads), aheads)
        if group["nesterov"]:
            torch._foreach_mul_(directions, ratios)
        else:
            works.update(zip(self.matrices, torch._foreach_mul(buffers, ratios), strict=True))

    def _write(self, works: dict[Bundle, Tensor], take: Tensor, group: Group) -> None:
        """`W ← W − lr·λ·W − lr·U`, rounded once where the parameters are of lower precision than the arithmetic."""
        lr, decay = group["lr"], group["weight_decay"]
        scale, rate = lr, lr
        if isinstance(lr, Tensor):  # alpha= takes no tensor, and reading it back would wait for the device
            scale, rate = 1.0, grafting.scalar(lr, take)
            torch._foreach_mul_(list(works.values()), rate)
        pairs = [
            (p, update)
            for bundle, work in works.items()
            for p, update, present in zip(bundle.params, work.unbind(0), bundle.present, strict=True)
            if present
        ]
        params = [p for p, _ in pairs]
        wide = [p.to(self.compute) for p in params]  # the same tensors where they are of that dtype
        if isinstance(decay, Tensor) or decay != 0:
            torch._foreach_mul_(wide, 1 - take * (rate * decay))
        torch._foreach_add_(wide, [update for _, update in pairs], alpha=-scale)
        lower = [(p, w) for p, w in zip(params, wide, strict=True) if p is not w]
        for dtype in dict.fromkeys(p.dtype for p, _ in lower):  # on CUDA, torch before 2.11 mixes several up
            alike = [(p, w) for p, w in lower if p.dtype == dtype]
            torch._foreach_copy_([p for p, _ in alike], [w for _, w in alike])


def _clear(tensors: Sequence[Tensor], finite: Tensor) -> None:
    """Set to zero, in place, where `finite`, a 0-dim boolean, is false.

    A product would keep NaN; on the bits it is exact, and on a CPU eight times as quick as filling by a mask.
    """
    bits = {4: torch.int32, 8: torch.int64}
    torch._foreach_mul_([tensor.view(bits[tensor.itemsize]) for tensor in tensors], finite)


def precisions(group: Group) -> tuple[Precision, Precision]:
    """Precision of the products of a refresh and of the direction."""
    given = group["matmul_precision"]
    return (given[0], given[1]) if isinstance(given, (tuple, list)) else (given, given)
