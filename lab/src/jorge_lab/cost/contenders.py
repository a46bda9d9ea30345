"""Every optimizer whose cost is measured, by name: Jorge in all its forms, and the rivals.

Jorge's names are `jorge`, then what is not the default: a method, the largest side of a block or `whole`, `bf16` for
the preconditioners' storage, `sgd` for its length, `compiled` for a compiled step: `jorge-congruence`, `jorge-1024`,
`jorge-bf16-256`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jorge import Jorge
from jorge.methods import DAMPING_PERIOD, METHODS
from jorge_lab.cost.rivals import PERIOD, RIVALS
from jorge_lab.cost.shapes import Named

#: The same for all, and so small that the weights hardly move: one set of parameters serves all contenders.
LEARNING_RATE = 1e-6
#: An interval that no benchmark lives to see the end of: no step refreshes.
NEVER = 10**6
#: Warm-up of a settled Jorge, and the refreshes that it believes to have had: far past the early ones, which repeat
#: their step more often.
LATE = 100 * DAMPING_PERIOD


class Missing(Exception):  # noqa: N818  # it is news, not an error
    """A rival whose package is not installed, or that cannot take these parameters."""


@dataclass
class Contender:
    """An optimizer with the gradients that it gets at each step, where they are to be always the same."""

    name: str
    optimizer: torch.optim.Optimizer
    period: int
    gradients: list[tuple[torch.nn.Parameter, Tensor | None]] = field(default_factory=list)

    @property
    def jorge(self) -> Jorge | None:
        """The optimizer, if it is ours."""
        return self.optimizer if isinstance(self.optimizer, Jorge) else None

    def step(self) -> None:
        """Take one step. Some optimizers take the gradients away, so they are put back for whoever comes next."""
        try:
            self.optimizer.step()
        finally:
            for p, grad in self.gradients:
                p.grad = grad

    def steps(self, count: int) -> None:
        """Take some steps."""
        for _ in range(count):
            self.step()


def jorge_options(name: str) -> dict[str, Any]:
    """The options that a name stands for.

    >>> jorge_options("jorge-congruence-256")
    {'method': 'congruence', 'block_size': 256}
    """
    options: dict[str, Any] = {}
    for part in name.split("-")[1:]:
        if part in METHODS:
            options["method"] = part
        elif part.isdecimal():
            options["block_size"] = int(part)
        elif part == "whole":
            options["block_size"] = None
        elif part == "bf16":
            options["preconditioner_dtype"] = torch.bfloat16
        elif part == "sgd":
            options["grafting"] = "sgd"
        elif part == "compiled":
            options["compile_step"] = True
        else:
            raise ValueError(f"{name!r}: {part!r} is no method, block size, 'whole', 'bf16', 'sgd' or 'compiled'")
    return options


def check(names: Sequence[str]) -> None:
    """Refuse names that nothing answers to.

    Raises:
        SystemExit: with the names that there are.
    """
    for name in names:
        try:
            known = name in RIVALS or (name.split("-")[0] == "jorge" and jorge_options(name) is not None)
        except ValueError as error:
            raise SystemExit(str(error)) from None
        if not known:
            raise SystemExit(f"no optimizer {name!r}: there are jorge, jorge-METHOD, jorge-BLOCK, {', '.join(RIVALS)}")


def build(name: str, named: Named, *, fixed_gradients: bool = True, interval: int = PERIOD) -> Contender:
    """Build a contender for named parameters.

    Raises:
        Missing: the package is not installed.
    """
    gradients = [(p, p.grad) for _, p in named] if fixed_gradients else []
    if name in RIVALS:
        rival = RIVALS[name]
        if rival.missing:
            raise Missing(rival.missing)
        return Contender(name, rival.build(named, LEARNING_RATE), rival.period, gradients)
    optimizer = Jorge(named, lr=LEARNING_RATE, momentum=0.9, interval=interval, **jorge_options(name))
    return Contender(name, optimizer, PERIOD, gradients)


def settle(contender: Contender, interval: int = PERIOD, *, damped: bool = False) -> None:
    """Bring a Jorge that has taken a step to just before a late refresh, without taking the steps in between.

    Those would cost minutes on a large model, and what a step costs depends on the counters alone. They are part of
    the state's contract, so this goes through a state dict; a test compares with a Jorge that took the steps. Rivals
    are left as they are.

    Args:
        contender: an optimizer of any kind.
        interval: steps between refreshes from now on.
        damped: the next step is one of the refreshes, one in `DAMPING_PERIOD`, that also apply the damping, and cost
            more; else one that does not.
    """
    if contender.jorge is None:
        return
    for group in contender.jorge.param_groups:
        group["interval"], group["warmup_refreshes"] = interval, 0
    earlier = LATE + (DAMPING_PERIOD - 1 if damped else 0)
    saved = contender.jorge.state_dict()
    for entry in saved["state"].values():
        entry["step"] = interval * (earlier + 1) - 1
    contender.jorge.load_state_dict(saved)


def never_refresh(contender: Contender) -> None:
    """Let a settled Jorge refresh no more until it is settled again."""
    assert contender.jorge is not None
    for group in contender.jorge.param_groups:
        group["interval"] = NEVER


def typical_steps(contender: Contender) -> Iterator[Callable[[], None]]:
    """Steps among which are the dearest and the cheapest of those that the optimizer takes in the long run."""
    contender.step()
    if contender.jorge is None:
        for _ in range(max(2, contender.period)):
            yield contender.step
        return
    for damped in (False, True):
        settle(contender, damped=damped)
        yield contender.step
    yield contender.step  # the one after a refresh
