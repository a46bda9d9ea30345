"""Mask R-CNN-ResNet-50-FPN on COCO 2017, as torchvision's reference trains it.

SGD, 26 epochs of batch 16, learning rate × 0.1 at 16 and 22, pictures of like shape together, flipped at random, of 800
pixels at the shorter side. Evaluation is the average precision of boxes and masks, by `pycocotools`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from pycocotools import mask as codes
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.transforms import v2

from recipes.coco import Annotation, Coco
from recipes.loop import Result, prepared, started
from recipes.order import Batch, Job, shares
from recipes.settings import Recipe, parser, steps_at

RECIPE = Recipe(
    batch_size=16,
    epochs=26,
    sgd={"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
    adamw={"lr": 1e-4, "weight_decay": 0.05},  # not of the reference, and not tuned
    transferred="sgd",
    decay=steps_at(16 / 26, 22 / 26),
    warmup_steps=1000,
)
#: Background and COCO's categories, by their ids, which go to 90.
CLASSES = 91
Target = dict[str, Any]


class Instances(Dataset[Any]):
    """Pictures `[3, height, width]` from 0 to 1, and boxes, labels and masks of the things in them.

    Args:
        root: COCO's folder.
        split: `"train"`, flipped at random and without pictures that have nothing in them, or `"val"`, with all.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.coco, train = Coco(root, split), split == "train"
        self.ids = [i for i in self.coco.ids if not train or self._things(i)]
        self.transform = v2.RandomHorizontalFlip(0.5 if train else 0.0)

    def _things(self, of: int) -> list[Annotation]:
        """What is one thing and has an area; crowds are not learnt from."""
        return [a for a in self.coco.annotations(of) if not a["iscrowd"] and min(a["bbox"][2:]) > 1]

    def shapes(self) -> list[int]:
        """A class of width over height for each picture, three of them to each doubling."""
        found = []
        for of in self.ids:
            height, width = self.coco.size(of)
            found.append(int(np.floor(3 * np.log2(np.clip(width / height, 0.5, 2)))))
        return found

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> tuple[Tensor, Target]:
        of = self.ids[at]
        things, (height, width) = self._things(of), self.coco.size(of)
        corners = torch.tensor([a["bbox"] for a in things], dtype=torch.float).view(-1, 4)
        corners[:, 2:] += corners[:, :2]
        corners = corners.clamp(min=torch.zeros(4), max=torch.tensor([width, height, width, height]))
        masks = [self.coco.mask(a) for a in things]
        target = {
            "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),
            "masks": tv_tensors.Mask(torch.stack(masks) if masks else torch.zeros(0, height, width)),
            "labels": torch.tensor([a["category_id"] for a in things], dtype=torch.long),
        }
        image, target = self.transform(v2.functional.to_image(self.coco.image(of)), target)
        plain = {name: value.as_subclass(Tensor) for name, value in target.items()}
        return v2.functional.to_dtype(image.as_subclass(Tensor), scale=True), {**plain, "image": of}


def build(args: argparse.Namespace) -> nn.Module:
    """The model, with a backbone that was trained on ImageNet, its statistics frozen, unless `--backbone none`."""
    backbone = None if args.backbone == "none" else args.backbone
    model: nn.Module = maskrcnn_resnet50_fpn(weights=None, weights_backbone=backbone, num_classes=CLASSES)
    return model


def together(examples: list[tuple[Tensor, Target]]) -> tuple[list[Tensor], list[Target]]:
    """A batch: lists, as pictures differ in size."""
    images, targets = zip(*examples, strict=True)
    return list(images), list(targets)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """The sum of the model's five losses."""
    found: dict[str, Tensor] = model(*batch)
    return torch.stack(list(found.values())).sum()


def detections(found: Target, of: int) -> Iterator[dict[str, Any]]:
    """What was found in a picture, as COCO's results have it."""
    corners = found["boxes"].float().cpu()
    sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1).tolist()
    masks = (found["masks"][:, 0] > 0.5).to(torch.uint8).cpu().numpy()
    for box, mask, label, score in zip(sides, masks, found["labels"].tolist(), found["scores"].tolist(), strict=True):
        code = codes.encode(np.asfortranarray(mask))
        yield {"image_id": of, "category_id": label, "bbox": box, "segmentation": code, "score": score}


def precision(model: nn.Module, val: Instances, job: Job, args: argparse.Namespace) -> dict[str, float]:
    """Average precision of boxes and masks over thresholds .5 to .95, and at .5, in percent."""
    mine: list[dict[str, Any]] = []
    for (images, targets), real in shares(val, job, args, 1, together):
        for found, target in list(zip(model(images), targets, strict=True))[:real]:
            mine += detections(found, target["image"])
    every = [mine]
    if job.size > 1:
        every = [[] for _ in range(job.size)]
        dist.all_gather_object(every, mine)
    scores = [_precision(val, [each for part in every for each in part]) if job.rank == 0 else {}]
    if job.size > 1:
        dist.broadcast_object_list(scores)
    return scores[0]


def _precision(val: Instances, found: list[dict[str, Any]]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name, kind in (("box", "bbox"), ("mask", "segm")):
        stats = [0.0, 0.0]
        if found:  # pycocotools reads no empty list
            with contextlib.redirect_stdout(io.StringIO()):
                results = val.coco.index.loadRes([dict(each) for each in found])
                judge = COCOeval(val.coco.index, results, kind)
                judge.evaluate()
                judge.accumulate()
                judge.summarize()
            stats = judge.stats
        scores |= {f"{name}_ap": 100 * float(stats[0]), f"{name}_ap50": 100 * float(stats[1])}
    return scores


def main(argv: Sequence[str] | None = None, build: Callable[[argparse.Namespace], nn.Module] = build) -> Result:
    """Train; `build` makes another model than torchvision's."""
    found = parser("mask_rcnn", __doc__, RECIPE)
    found.add_argument("--backbone", default="IMAGENET1K_V1", help="torchvision's weights of the ResNet-50, or none")
    args = found.parse_args(argv)
    with started(args) as job:
        train, val = Instances(args.data, "train"), Instances(args.data, "val")
        model = build(args)
        training = prepared(
            args,
            job,
            RECIPE,
            model,
            len(train),
            loss,
            lambda bare: precision(bare, val, job, args),
            blocks=[part for part in model.children() if any(True for _ in part.parameters())],
            alike=train.shapes(),
        )
        return training.run(train, together)


if __name__ == "__main__":
    main()
