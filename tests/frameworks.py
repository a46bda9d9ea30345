"""Frameworks that may not be there: what needs one is skipped, or fails where `make examples` asks for all."""

import importlib
import os
from types import ModuleType

import pytest
import torch

#: Operators that importing torchvision wants to be declared. The compiled ones load with the torch that they were
#: built with alone, and not, say, with a build for CPUs where they are of one for GPUs; nothing here calls them.
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
#: The declarations last as long as this has them.
declared: list[torch.library.Library] = []


def framework(name: str) -> ModuleType:
    """The module of that name."""
    try:
        if name.partition(".")[0] == "timm":
            _have_torchvision()
        return importlib.import_module(name)
    except ImportError as error:
        if os.environ.get("JORGE_FRAMEWORKS") == "all":
            raise
        pytest.skip(f"{name}: {error}")


def _have_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError:  # `operator torchvision::nms does not exist`
        declared.append(torch.library.Library("torchvision", "DEF"))  # type: ignore[no-untyped-call]
        for operator in OPERATORS:
            declared[0].define(operator)  # type: ignore[no-untyped-call]
        importlib.import_module("torchvision")
