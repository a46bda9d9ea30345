"""Slices of the MNI ICBM152 brain template, which nilearn ships, with the tissue at each pixel."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from jorge_lab.tasks.task import Batch, Data, DataMissingError, Size

#: What a pixel can be, by code.
CLASSES = ("background", "grey matter", "white matter", "rest of the brain")
#: Millimetres a pixel; slices are a millimetre apart at every size.
PIXEL: dict[Size, int] = {"smoke": 2, "small": 1, "full": 1}
#: Edge of the cube around the brain that is cut from the template, in voxels of a millimetre.
_EDGE = 192
#: Edge of a tile in millimetres, and the share of it that has to be brain.
TILE, _LEAST = 96, 0.1
#: Of so many slices in a row the first are for training and the last for validation; those between are left out.
_PERIOD, _TRAINING, _GAP = 30, 20, 3


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
    edge = TILE // PIXEL[size]
    tiles = [tile for row in torch.split(maps, edge, 1) for tile in torch.split(row, edge, 2)]
    return [tile for tile in tiles if (tile[0] > 0).float().mean() > _LEAST]


def _examples(tiles: list[Tensor]) -> Batch:
    """Images and the codes of the likeliest classes, uint8."""
    stacked = torch.stack(tiles)
    return stacked[:, :1].contiguous(), stacked[:, 1:].argmax(1).to(torch.uint8)
