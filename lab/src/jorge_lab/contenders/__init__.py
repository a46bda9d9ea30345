"""The optimizers of a comparison, by name: ours and the opponents, each in its usual implementation.

Every one is built from a task's first-order recipe by a rule that its options state, unless the setting is another
(:data:`~jorge_lab.contenders.contender.Setting`). All share the task's schedule but schedule-free AdamW.
"""

from jorge_lab.contenders import first_order, heavyball, muon, natural_gradient, ours, pytorch_optimizer
from jorge_lab.contenders.contender import (
    NEUTRAL,
    SETTINGS,
    Built,
    Contender,
    Setting,
    UnsuitableError,
    comparable,
    settings,
)
from jorge_lab.contenders.ours import variant
from jorge_lab.contenders.state import restore, state_bytes

__all__ = [
    "CONTENDERS",
    "NEUTRAL",
    "SETTINGS",
    "Built",
    "Contender",
    "Setting",
    "UnsuitableError",
    "comparable",
    "restore",
    "settings",
    "state_bytes",
    "variant",
]

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        ours.JORGE,
        first_order.SGD,
        first_order.ADAMW,
        ours.SHAMPOO,
        heavyball.SOAP,
        muon.MUON,
        heavyball.PSGD,
        first_order.SCHEDULE_FREE,
        pytorch_optimizer.SHAMPOO,
        pytorch_optimizer.SOAP,
        heavyball.KL_SHAMPOO,
        heavyball.KL_SOAP,
        heavyball.PSGD_PRO,
        pytorch_optimizer.NORMUON,
        natural_gradient.SINGD,
        natural_gradient.SIRF_SHAMPOO,
        *ours.VARIANTS,
    )
}
