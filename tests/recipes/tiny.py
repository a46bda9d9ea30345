"""The recipes with small models: `torchrun -m tests.recipes.tiny NAME ARGUMENTS`, and as a function."""

from __future__ import annotations

import importlib
import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from recipes.loop import Result


def imagenet(args: Any, classes: int) -> Any:
    """A MobileNetV2 of a quarter of its width."""
    from torchvision.models import MobileNetV2

    return MobileNetV2(num_classes=classes, width_mult=0.25)


def _features() -> Any:
    from torchvision.models import MobileNetV2

    return MobileNetV2(width_mult=0.25).features


def deeplab(args: Any) -> Any:
    """DeepLabv3 on the same."""
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.segmentation.deeplabv3 import DeepLabHead, DeepLabV3
    from torchvision.models.segmentation.fcn import FCNHead

    backbone = IntermediateLayerGetter(_features(), {"6": "aux", "13": "out"})
    return DeepLabV3(backbone, DeepLabHead(24, 21), FCNHead(8, 21))


def mask_rcnn(args: Any) -> Any:
    """Mask R-CNN on the same, with a pyramid of 16 channels."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    layers = {"3": "0", "6": "1", "13": "2", "17": "3"}
    backbone = BackboneWithFPN(_features(), layers, [8, 8, 24, 80], 16)
    return MaskRCNN(
        backbone,
        min_size=64,
        max_size=96,
        box_head=TwoMLPHead(16 * 7 * 7, 32),
        box_predictor=FastRCNNPredictor(32, 91),
        mask_head=MaskRCNNHeads(16, (16,), 1),
        mask_predictor=MaskRCNNPredictor(16, 16, 91),
    )


def cifar10() -> nn.Module:
    """The recipe's own network, of an eighth of its width."""
    from recipes.cifar10 import ResNet9

    return ResNet9(8)


BUILDS: dict[str, Callable[..., nn.Module]] = {
    "imagenet": imagenet,
    "deeplab": deeplab,
    "mask_rcnn": mask_rcnn,
    "cifar10": cifar10,
}
#: The GPT is as small as it is asked for.
SMALL_GPT = ("--layers", "2", "--width", "32", "--heads", "2", "--context", "32")


def run(name: str, argv: Sequence[str]) -> Result:
    """A recipe on one thread."""
    torch.set_num_threads(1)
    recipe = importlib.import_module(f"recipes.{name}")
    result: Result = recipe.main(list(argv), BUILDS[name]) if name in BUILDS else recipe.main([*SMALL_GPT, *argv])
    return result


def whole(model: nn.Module) -> Tensor:
    """All parameters in one vector."""
    parts = [p.detach() for p in model.parameters()]
    return torch.cat([(p.full_tensor() if isinstance(p, DTensor) else p).flatten() for p in parts])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    leave = dist.destroy_process_group
    setattr(dist, "destroy_process_group", bool)  # sharded weights are looked at below  # noqa: B010
    found = run(sys.argv[1], sys.argv[2:])
    total, first = whole(found.model).double().sum().item(), dist.get_rank() == 0
    leave()
    if first:
        sharded = any(isinstance(p, DTensor) for p in found.model.parameters())
        print("RESULT", json.dumps({"losses": found.losses, "scores": found.scores, "sum": total, "sharded": sharded}))
