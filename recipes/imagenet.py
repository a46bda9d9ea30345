"""ResNet-50 on ImageNet, as torchvision's reference trains it: SGD, 90 epochs, learning rate × 0.1 at 30 and 60.

The data are two folders, `train` and `val`, of a folder of pictures for each class. Evaluation is top-1 and top-5
accuracy at the centre.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from recipes.loop import Result, prepared, started
from recipes.order import Batch, Job, shares
from recipes.settings import Recipe, parser, steps_at

RECIPE = Recipe(
    batch_size=256,
    epochs=90,
    sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    adamw={"lr": 1e-3, "weight_decay": 0.05},  # not of the reference, and not tuned
    transferred="sgd",
    decay=steps_at(30 / 90, 60 / 90),
)
#: Mean and standard deviation of the colours.
COLOURS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def build(args: argparse.Namespace, classes: int) -> nn.Module:
    """The model, by its name in torchvision."""
    model: nn.Module = models.get_model(args.model, weights=None, num_classes=classes)
    return model


def stages(model: nn.Module) -> list[nn.Module]:
    """What is sharded by itself: the parts that are sequences of blocks."""
    return [part for part in model.children() if isinstance(part, nn.Sequential)]


def pictures(args: argparse.Namespace) -> tuple[ImageFolder, ImageFolder]:
    """The training set, cropped and flipped at random, and the validation set, cropped at the centre."""
    end = [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(**COLOURS)]
    train = v2.Compose([v2.RandomResizedCrop(args.crop_size), v2.RandomHorizontalFlip(), *end])
    val = v2.Compose([v2.Resize(args.resize_size), v2.CenterCrop(args.crop_size), *end])
    return ImageFolder(args.data / "train", train), ImageFolder(args.data / "val", val)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy."""
    images, labels = batch
    return functional.cross_entropy(model(images), labels)


def accuracy(model: nn.Module, val: ImageFolder, job: Job, args: argparse.Namespace) -> dict[str, float]:
    """Top-1 and top-5, in percent of the validation set."""
    hits = torch.zeros(2, dtype=torch.double, device=job.device)
    for (images, labels), real in shares(val, job, args, args.evaluation_batch):
        best = model(images)[:real].topk(min(5, len(val.classes))).indices
        right = best == labels[:real, None]
        hits += torch.stack([right[:, 0].sum(), right.sum()])
    top1, top5 = (100 * job.sum(hits) / len(val)).tolist()
    return {"top1": top1, "top5": top5}


def main(argv: Sequence[str] | None = None, build: Callable[[argparse.Namespace, int], nn.Module] = build) -> Result:
    """Train; `build` makes another model than torchvision's."""
    found = parser("imagenet", __doc__, RECIPE)
    found.add_argument("--model", default="resnet50", help="its name in torchvision")
    found.add_argument("--crop-size", type=int, default=224)
    found.add_argument("--resize-size", type=int, default=256, help="of the shorter side, before the centre is taken")
    found.add_argument("--evaluation-batch", type=int, default=64, help="of each process")
    args = found.parse_args(argv)
    with started(args) as job:
        train, val = pictures(args)
        model = build(args, len(train.classes))
        training = prepared(
            args,
            job,
            RECIPE,
            model,
            len(train),
            loss,
            lambda bare: accuracy(bare, val, job, args),
            blocks=stages(model),
        )
        return training.run(train)


if __name__ == "__main__":
    main()
