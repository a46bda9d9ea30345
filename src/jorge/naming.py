"""What parameters are called in messages."""

from __future__ import annotations

from jorge.options import Group


def names(group: Group, index: int) -> list[str]:
    """A name for each parameter of a group: its own where it was given, else its place.

    Raises:
        RuntimeError: there are more names than parameters.
    """
    given = list(group.get("param_names") or ())
    if len(given) > len(group["params"]):
        raise RuntimeError(
            f"param group {index} has {len(group['params'])} parameters and {len(given)} names: something has put "
            "other parameters into it. DeepSpeed's ZeRO flattens them, which leaves no matrix: use FSDP2, or stage 0"
        )
    return given + [place_of(index, i) for i in range(len(given), len(group["params"]))]


def place_of(group_index: int, index: int) -> str:
    """Where a parameter without a name is."""
    return f"parameter {index} of group {group_index}"
