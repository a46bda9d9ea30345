"""timm: `create_optimizer_v2(model, opt="jorge")`, and `--opt jorge` of its training script."""

from __future__ import annotations

from jorge.optimizer import Jorge


def register() -> None:
    """Make `"jorge"` a name of timm's optimizers, with the arguments that `"adamw"` takes.

    Call it before the optimizer is created; a second call changes nothing. timm's `momentum` is left alone, as with
    AdamW: the first of `betas` is Jorge's.

    Raises:
        ImportError: no timm, or one whose registry is elsewhere.
    """
    from timm.optim import OptimInfo, list_optimizers
    from timm.optim._optim_factory import default_registry

    if "jorge" not in list_optimizers():
        says = "Second-order, without inverses: arXiv 2310.12298 and beyond it"
        default_registry.register(OptimInfo(name="jorge", opt_class=Jorge, description=says, has_betas=True))
