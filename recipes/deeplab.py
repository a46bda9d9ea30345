"""DeepLabv3-ResNet-50 on COCO with the classes of Pascal VOC, as torchvision's reference trains it.

SGD, 30 epochs of batch 32, a polynomial schedule, ten times the learning rate for the auxiliary classifier, whose loss
counts half. Evaluation is the mean of the classes' intersections over unions, background among them, and the share of
pixels that are right.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.models.segmentation import deeplabv3_resnet50
from torchvision.transforms import v2

from recipes.coco import Annotation, Coco
from recipes.imagenet import COLOURS
from recipes.loop import Result, prepared, started
from recipes.order import Batch, Job, shares
from recipes.settings import Recipe, parser

RECIPE = Recipe(
    batch_size=32,
    epochs=30,
    sgd={"lr": 0.02, "momentum": 0.9, "weight_decay": 1e-4},
    adamw={"lr": 1e-4, "weight_decay": 0.05},  # not of the reference, and not tuned
    transferred="sgd",
    decay=lambda done: float((1 - done) ** 0.9),
)
#: Pascal VOC's classes after background, in VOC's order, by COCO's names.
VOC = (
    *("airplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("dining table", "dog", "horse", "motorcycle", "person", "potted plant", "sheep", "couch", "train", "tv"),
)
#: A pixel that does not count: outside of the picture, or in two things at once.
IGNORED = 255
#: A training picture has more than so many pixels of VOC's classes.
LEAST_AREA = 1000


class Segmentation(Dataset[Any]):
    """Pictures and the class of each pixel.

    Args:
        root: COCO's folder.
        split: `"train"`, without pictures that have next to nothing to learn, or `"val"`.
        args: `base_size` and `crop_size`.
    """

    def __init__(self, root: Path, split: str, args: argparse.Namespace) -> None:
        self.coco, train = Coco(root, split), split == "train"
        names = {category["name"]: category["id"] for category in self.coco.index.cats.values()}
        self.classes = {names[name]: VOC.index(name) + 1 for name in VOC if name in names}
        self.ids = [i for i in self.coco.ids if not train or self._area(i) > LEAST_AREA]
        sizes = list(range(args.base_size // 2, 2 * args.base_size + 1)) if train else [args.base_size]
        fill = {tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}
        crop = [v2.RandomHorizontalFlip(), v2.RandomCrop(args.crop_size, pad_if_needed=True, fill=fill)]
        end = [v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize(**COLOURS)]
        self.transform = v2.Compose([v2.RandomShortestSize(sizes), *(crop if train else []), *end])

    def _of_voc(self, of: int) -> list[Annotation]:
        return [a for a in self.coco.annotations(of) if a["category_id"] in self.classes]

    def _area(self, of: int) -> float:
        return float(sum(a["area"] for a in self._of_voc(of)))

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, at: int) -> tuple[Tensor, Tensor]:
        of = self.ids[at]
        classes = torch.zeros(self.coco.size(of), dtype=torch.long)
        covered = torch.zeros_like(classes)
        for annotation in self._of_voc(of):
            mask = self.coco.mask(annotation)
            classes[mask] = self.classes[annotation["category_id"]]
            covered += mask
        classes[covered > 1] = IGNORED
        image, target = self.transform(
            tv_tensors.Image(v2.functional.pil_to_tensor(self.coco.image(of))), tv_tensors.Mask(classes)
        )
        return image.as_subclass(Tensor), target.as_subclass(Tensor)


def build(args: argparse.Namespace) -> nn.Module:
    """The model, with a backbone that was trained on ImageNet unless `--backbone none`."""
    backbone = None if args.backbone == "none" else args.backbone
    classes = len(VOC) + 1
    model: nn.Module = deeplabv3_resnet50(weights=None, weights_backbone=backbone, num_classes=classes, aux_loss=True)
    return model


def groups(model: nn.Module) -> list[dict[str, Any]]:
    """The auxiliary classifier learns ten times as fast."""
    named = list(model.named_parameters())
    aux = [(name, p) for name, p in named if name.startswith("aux_classifier.")]
    rest = [(name, p) for name, p in named if not name.startswith("aux_classifier.")]
    return [{"params": rest}, {"params": aux, "lr_scale": 10.0}]


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of the classifier and half of the auxiliary one's."""
    images, classes = batch
    found = model(images)
    own, aux = (functional.cross_entropy(found[name], classes, ignore_index=IGNORED) for name in ("out", "aux"))
    return own + 0.5 * aux


def overlap(model: nn.Module, val: Segmentation, job: Job, args: argparse.Namespace) -> dict[str, float]:
    """Mean intersection over union of the classes that occur, and the share of right pixels, in percent."""
    size = len(VOC) + 1
    counts = torch.zeros(size * size, dtype=torch.long, device=job.device)
    for (image, classes), real in shares(val, job, args, 1):  # one at a time: they differ in size
        found = model(image)["out"].argmax(1)
        known = classes != IGNORED
        if real:
            counts += torch.bincount(size * classes[known] + found[known], minlength=size * size)
    matrix = job.sum(counts).view(size, size).double()
    right, union = matrix.diagonal(), matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    mean = (right[union > 0] / union[union > 0]).mean()
    return {"mean_iou": 100 * mean.item(), "pixels": 100 * (right.sum() / matrix.sum()).item()}


def main(argv: Sequence[str] | None = None, build: Callable[[argparse.Namespace], nn.Module] = build) -> Result:
    """Train; `build` makes another model than torchvision's."""
    found = parser("deeplab", __doc__, RECIPE)
    found.add_argument("--backbone", default="IMAGENET1K_V1", help="torchvision's weights of the ResNet-50, or none")
    found.add_argument("--base-size", type=int, default=520, help="of the shorter side; in training half to twice")
    found.add_argument("--crop-size", type=int, default=480)
    args = found.parse_args(argv)
    with started(args) as job:
        train, val = Segmentation(args.data, "train", args), Segmentation(args.data, "val", args)
        model = build(args)
        if job.size > 1 and job.device.type == "cuda":  # as in the reference; there is none for CPUs
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        training = prepared(
            args,
            job,
            RECIPE,
            model,
            len(train),
            loss,
            lambda bare: overlap(bare, val, job, args),
            blocks=model.children(),
            groups=groups,
        )
        return training.run(train)


if __name__ == "__main__":
    main()
