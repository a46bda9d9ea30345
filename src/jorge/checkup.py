"""Look a training over before it runs: three dry steps, and what is wrong with model, loss and optimizer.

All that is handed over is afterwards as it was: weights, buffers, state and gradients; so are random numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from jorge.diagnostics import Diagnostics
from jorge.dryrun import kept, random_numbers_kept, transport_of, treated
from jorge.exchange.checkpoints import whole
from jorge.exchange.transport import Transport
from jorge.findings import (
    LEVELS,
    Finding,
    memory,
    of_gradients,
    of_groups,
    of_loss,
    of_membership,
    of_memory,
    of_model,
    of_rounding,
    of_scale,
    of_shapes,
    of_skips,
    of_steps,
    of_unmade,
)
from jorge.groups import param_groups
from jorge.naming import names
from jorge.optimizer import Jorge
from jorge.validation import some

_STEPS = 3
_T = TypeVar("_T")


@dataclass(frozen=True)
class Checkup:
    """What :func:`doctor` found, the worst first; `str()` is no longer than a screen.

    Args:
        findings: what was found.
        losses: of the dry steps, on the same batch; of several processes the means.
        diagnostics: after them; `None` where no step could be taken.
    """

    findings: tuple[Finding, ...]
    losses: tuple[float, ...]
    diagnostics: Diagnostics | None

    @property
    def healthy(self) -> bool:
        """Whether there is nothing but notes."""
        return all(finding.level == "note" for finding in self.findings)

    def __str__(self) -> str:
        lines = [
            f"loss in {len(self.losses)} dry steps on one batch: {', '.join(f'{x:.5g}' for x in self.losses) or '–'}"
        ]
        lines += map(str, self.findings)
        counts = Counter(finding.level for finding in self.findings)
        lines.append(
            ", ".join(f"{n} {level}{'s' * (n > 1)}" for level in LEVELS if (n := counts[level])) or "nothing found"
        )
        return "\n".join(lines)


def doctor(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    optimizer: torch.optim.Optimizer | None = None,
) -> Checkup:
    """Take three dry steps on a copy of a model and of its optimizer, and say what looks wrong.

    Under `DistributedDataParallel` and with sharded parameters all processes have to ask, each with its part of a
    batch, and all are told the same. A model with sharded parameters is not copied: the steps are taken on itself, and
    it gets its weights, buffers and gradients back, to the bit; what modules keep elsewhere stays as steps leave it.

    Args:
        model: the module, in training mode as it is trained.
        loss: of a model and a batch, a scalar tensor. It is handed the copy: use what it is given, not the original.
            In several processes it is that of the part that is here.
        batch: whatever `loss` takes.
        optimizer: built on the model's parameters; by default `Jorge(param_groups(model))`. Hooks of parameters are
            not copied, as torch does not copy them.

    Returns:
        the findings, with remedies.

    Raises:
        TypeError: no module, no function, or a model that cannot be copied.

    >>> import torch
    >>> from jorge import Jorge, doctor
    >>> model = torch.nn.Linear(4, 2)
    >>> model.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    >>> inputs, targets = torch.randn(8, 4), torch.randn(8, 2)
    >>> found = doctor(model, lambda m, batch: (m(batch[0]) - batch[1]).square().mean(), (inputs, targets))
    >>> [(finding.level, finding.what) for finding in found.findings]
    [('warning', 'no gradient reaches unused')]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"doctor() takes a module first, got {type(model).__name__}")
    if not callable(loss):
        raise TypeError(f"doctor() takes a function of model and batch for the loss, got {type(loss).__name__}")
    unmade = of_unmade(model)
    if unmade is not None:
        return Checkup((unmade,), (), None)
    with random_numbers_kept(model), kept(model), torch.inference_mode(False), torch.enable_grad():
        try:
            patient, its_optimizer = treated(model, optimizer)
        except Exception as error:  # whatever a module may raise
            raise TypeError(f"the model or its optimizer cannot be copied: {type(error).__name__}: {error}") from error
        findings, losses, seen = _examine(patient, loss, batch, its_optimizer, transport_of(model))
    if isinstance(optimizer, Jorge):
        findings += of_skips(optimizer.skipped_steps())
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    return Checkup(tuple(findings), tuple(losses), seen)


def _every(transport: Transport | None, mine: _T) -> list[_T]:
    """What each process has."""
    return [mine] if transport is None else transport.objects(mine)


def _first(transport: Transport | None, mine: Finding | None) -> Finding | None:
    """The finding of the first process that has one, so that all go on or none."""
    return next((found for found in _every(transport, mine) if found is not None), None)


def _call_by_name(optimizer: Jorge, model: nn.Module) -> None:
    """Give parameters of groups without names those that they have in the model; the optimizer is a copy."""
    called = {p: name for name, p in model.named_parameters()}
    for index, group in enumerate(optimizer.param_groups):
        if "param_names" not in group:
            places = zip(group["params"], names(group, index), strict=True)
            group["param_names"] = [called.get(p, place) for p, place in places]


def _examine(
    model: nn.Module,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Any,
    optimizer: torch.optim.Optimizer | None,
    transport: Transport | None,
) -> tuple[list[Finding], list[float], Diagnostics | None]:
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return [Finding("error", "no parameter requires a gradient", "Unfreeze what is to be trained.")], [], None
    if optimizer is None:
        optimizer = Jorge(param_groups(model))
    findings = [*of_model(model, trained), *of_membership(model, trained, optimizer)]
    if isinstance(optimizer, Jorge):
        _call_by_name(optimizer, model)
        findings += [*of_groups(optimizer), *of_shapes(model, optimizer)]
        findings += of_memory(_every(transport, memory(optimizer)))
    losses: list[float] = []
    dead = set(trained)
    start = {name: p.detach().clone() for name, p in trained.items()}
    seen: Diagnostics | None = None
    for _ in range(_STEPS):
        optimizer.zero_grad()
        value = loss(model, batch)
        problem = _first(transport, of_loss(value))
        if problem is not None:
            return [*findings, problem], losses, seen
        each = _every(transport, float(whole(value.detach())))
        losses.append(sum(each) / len(each))
        value.backward()  # type: ignore[no-untyped-call]
        if not losses[1:]:
            findings += of_gradients(trained)
        dead -= {name for name, p in trained.items() if p.grad is None or p.grad.is_sparse or bool(whole(p.grad).any())}
        try:
            if len(losses) == _STEPS and isinstance(optimizer, Jorge):
                seen = optimizer.diagnostics()
            optimizer.step()
        except Exception as error:  # whatever an optimizer may raise
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            problem = Finding("error", f"a step cannot be taken: {line}", "See above.")
        problem = _first(transport, problem)
        if problem is not None:
            return [*findings, problem], losses, seen
    if dead:
        findings.append(
            Finding(
                "warning",
                f"the gradient of {some([name for name in trained if name in dead])} is zero in all steps",
                "A layer before it may be dead, or its output multiplied by 0.",
            )
        )
    if seen is not None and isinstance(optimizer, Jorge):
        findings += of_scale(optimizer, seen)
    findings += [*of_rounding(trained, start), *of_steps(losses, seen, start)]
    return findings, losses, seen
