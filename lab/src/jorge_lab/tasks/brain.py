"""Semantic segmentation of brain tissue with DeepLabv3: slices of the MNI ICBM152 template, as in nilearn."""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.task import Batch, Data, DataMissingError, FirstOrder, Size, Task
from jorge_lab.tasks.nets.residual import stage, stem

#: What a pixel can be, by code.
CLASSES = ("background", "grey matter", "white matter", "rest of the brain")
#: Millimetres a pixel; slices are a millimetre apart at every size.
PIXEL: dict[Size, int] = {"smoke": 2, "small": 1, "full": 1}
#: Edge of the cube around the brain that is cut from the template, in voxels of a millimetre.
_EDGE = 192
#: Edge of a tile in millimetres, and the share of it that has to be brain.
_TILE, _LEAST = 96, 0.1
#: Of so many slices in a row the first are for training and the last for validation; those between are left out.
_PERIOD, _TRAINING, _GAP = 30, 20, 3
#: Channels of the four stages of the backbone, and blocks in each but the first.
_WIDTHS: dict[Size, tuple[int, ...]] = {
    "smoke": (8, 16, 32, 64),
    "small": (16, 32, 64, 128),
    "full": (32, 64, 128, 256),
}
_BLOCKS: dict[Size, int] = {"smoke": 1, "small": 1, "full": 2}


def _read(folder: Path, name: str) -> Tensor:
    """A map of the template as floats in [0, 1], cut or padded to a cube about its middle."""
    import nibabel

    image = nibabel.loadsave.load(folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    assert isinstance(image, nibabel.nifti1.Nifti1Image)
    volume = torch.from_numpy(image.get_fdata(dtype="float32")) / 255
    # negative padding cuts; F.pad counts from the last dim
    pad = [(_EDGE - length) // 2 + side * ((_EDGE - length) % 2) for length in volume.shape[::-1] for side in (0, 1)]
    return F.pad(volume, pad)


@cache
def load(size: Size) -> Data:
    """Quarters of slices `[count, 1, edge, edge]`, intensity in [0, 1], and the pixels' classes, `[count, edge, edge]`.

    Slices of all three orientations, of one side of the brain: the template is symmetric. Validation slices are four
    millimetres or more from the training slices of their orientation, which they resemble all the same, as there is
    one brain; both cross slices of the other orientations. Tiles that are nearly empty are left out.

    Raises:
        DataMissingError: nilearn is not installed, or a release without the template.
    """
    spec = find_spec("nilearn")
    missing = DataMissingError("the task brain reads its template from the package nilearn: pip install nilearn")
    if spec is None or spec.origin is None:
        raise missing
    folder = Path(spec.origin).parent / "datasets" / "data"
    try:
        intensity, grey, white = (_read(folder, name)[: _EDGE // 2] for name in ("t1", "gm", "wm"))
    except FileNotFoundError as error:
        raise missing from error
    # outside the brain the template is exactly zero
    inside = (intensity > 0).float()
    maps = torch.stack([intensity, 1 - inside, grey * inside, white * inside, (inside - grey - white).clamp(min=0)])
    train, validation = [], []
    for axis in range(3):
        slices = F.avg_pool3d(maps.movedim(1 + axis, 1), (1, PIXEL[size], PIXEL[size]))
        filled = [part for part in slices.unbind(1) if part[0].any()]
        for place, part in enumerate(filled):
            within = place % _PERIOD
            if within < _TRAINING:
                train += _tiles(part, size)
            elif _TRAINING + _GAP <= within < _PERIOD - _GAP:
                validation += _tiles(part, size)
    return Data(_examples(train), _examples(validation))


def _tiles(maps: Tensor, size: Size) -> list[Tensor]:
    """A slice `[map, height, width]` in square tiles, those with enough of the brain in them."""
    edge = _TILE // PIXEL[size]
    tiles = [tile for row in torch.split(maps, edge, 1) for tile in torch.split(row, edge, 2)]
    return [tile for tile in tiles if (tile[0] > 0).float().mean() > _LEAST]


def _examples(tiles: list[Tensor]) -> Batch:
    """Images and the codes of the likeliest classes, uint8."""
    stacked = torch.stack(tiles)
    return stacked[:, :1].contiguous(), stacked[:, 1:].argmax(1).to(torch.uint8)


def _unit(before: int, after: int, dilation: int = 0) -> nn.Sequential:
    """A 1 × 1 convolution, or a dilated 3 × 3 one, with batch normalization and ReLU."""
    edge = 3 if dilation else 1
    conv = nn.Conv2d(before, after, edge, padding=dilation, dilation=max(1, dilation), bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), nn.ReLU())


class Pyramid(nn.Module):
    """Atrous spatial pyramid pooling (Chen et al. 2017): views of several widths, and the whole picture's mean."""

    def __init__(self, before: int, after: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.views = nn.ModuleList([_unit(before, after), *(_unit(before, after, rate) for rate in rates)])
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), _unit(before, after))
        self.project = _unit((len(rates) + 2) * after, after)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, before, height, width]` to `[batch, after, height, width]`."""
        views = [view(x) for view in self.views]
        whole = self.whole(x).expand_as(views[0])
        projected: Tensor = self.project(torch.cat([*views, whole], dim=1))
        return projected


class DeepLab(nn.Module):
    """DeepLabv3: a residual network whose last stage is dilated, so that it stays at an eighth, and a pyramid on it.

    The pyramid's rates are the paper's 6, 12 and 18, which are for maps of 65 places, in proportion to the map.
    """

    def __init__(self, size: Size) -> None:
        super().__init__()
        widths, blocks = _WIDTHS[size], _BLOCKS[size]
        one, two, three, four = widths
        self.backbone = nn.Sequential(
            stem(1, one),
            stage(one, two, blocks, stride=2),
            stage(two, three, blocks, stride=2),
            stage(three, four, blocks, dilation=2),
        )
        places = _TILE // PIXEL[size] // 8
        rates = tuple(max(1, round(rate * places / 65)) for rate in (6, 12, 18))
        self.pyramid, self.head = Pyramid(four, three, rates), nn.Conv2d(three, len(CLASSES), 1)

    def forward(self, images: Tensor) -> Tensor:
        """`[batch, 1, height, width]` to logits `[batch, class, height, width]`."""
        logits = self.head(self.pyramid(self.backbone(images)))
        return F.interpolate(logits, images.shape[2:], mode="bilinear", align_corners=False)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the pixels, in nats."""
    images, classes = batch
    return F.cross_entropy(model(images), classes.long())


def mean_iou(model: nn.Module, batch: Batch) -> Tensor:
    """Each image's intersection over union, mean over the classes that are in it or are predicted; summed."""
    images, classes = batch
    codes = torch.arange(len(CLASSES), device=images.device).view(-1, 1, 1)
    truth, predicted = classes.unsqueeze(1) == codes, model(images).argmax(1, keepdim=True) == codes
    both, either = (truth & predicted).sum((2, 3)), (truth | predicted).sum((2, 3))
    return torch.div(both / either.clamp(min=1), (either > 0).sum(1, keepdim=True)).sum()


def task(size: Size) -> Task:
    """The task at a size."""
    return Task(
        name="brain",
        title="Brain slices, DeepLabv3",
        origin="MNI ICBM152 2009a nonlinear symmetric template (McConnell Brain Imaging Centre, McGill University; "
        "free to use, copy, modify and distribute with its copyright notice) as shipped by nilearn (BSD-3-Clause)",
        why="Segmentation, the second kind of network that Jorge was introduced with: dilated convolutions, every "
        "pixel a prediction.",
        size=size,
        recipe=FirstOrder(
            baseline="sgd",
            sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
            adamw={"lr": 3e-3, "weight_decay": 1e-2},
            schedule="cosine",
        ),
        steps={"smoke": 30, "small": 600, "full": 20000}[size],
        batch_size=8,
        metric=("mean IoU", "higher"),
        load=partial(load, size),
        model=partial(DeepLab, size),
        loss=loss,
        score=mean_iou,
    )
