"""Small data sets in the formats in which the large ones are handed out."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SENTENCE = "the quick brown fox jumps over the lazy dog. "
#: A category of COCO for each colour: a bird and a dog are VOC's too, a kite is not.
CATEGORIES = {16: "bird", 18: "dog", 38: "kite"}
COLOURS = {16: (220, 40, 40), 18: (40, 220, 40), 38: (40, 40, 220)}
SIDE = 64


def text(folder: Path) -> Path:
    """Text files, one of them for validation."""
    folder.mkdir()
    (folder / "book.txt").write_text(SENTENCE * 300)
    (folder / "val.txt").write_text(SENTENCE * 20)
    return folder


def tokens(folder: Path, *, header: bool) -> Path:
    """Two files of tokens for training and one for validation, with the header of the speed-run's or bare."""
    folder.mkdir()
    numbers = torch.tensor(list((SENTENCE * 100).encode()), dtype=torch.int32)
    for name, found in {"train_1": numbers[:2000], "train_2": numbers[2000:], "val_0": numbers[:700]}.items():
        head = torch.zeros(256, dtype=torch.int32)
        head[:3] = torch.tensor([20240520, 1, len(found)])
        parts = ([head.numpy().tobytes()] if header else []) + [found.to(torch.uint16).numpy().tobytes()]
        (folder / f"{name}.bin").write_bytes(b"".join(parts))
    return folder


def cifar10(folder: Path) -> Path:
    """The pickles of `cifar-10-batches-py`, of a few pictures whose colour says their class."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, count in {**{f"data_batch_{k}": 20 for k in range(1, 6)}, "test_batch": 30}.items():
        labels = [k % 10 for k in range(count)]
        images = torch.randint(0, 60, (count, 3, 32, 32), generator=generator)
        images += 20 * torch.tensor([[k, 9 - k, 5] for k in labels])[:, :, None, None]
        batch = {"data": images.to(torch.uint8).view(count, -1).numpy(), "labels": labels, "batch_label": name}
        (folder / name).write_bytes(pickle.dumps(batch))
    return folder


def image_folder(folder: Path) -> Path:
    """JPEG and PNG files, some grey, in a folder for each class in `train` and `val`."""
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split, count in {"train": 16, "val": 5}.items():
        for channel, name in enumerate(("n01440764", "n01443537", "n01484850")):
            (folder / split / name).mkdir(parents=True)
            for k in range(count):
                pixels = torch.randint(0, 60, (40 + k % 3, 48, 3), generator=generator)
                pixels[..., channel] += 180
                image = Image.fromarray(pixels.to(torch.uint8).numpy())
                image = image.convert("L") if k == count - 1 else image
                image.save(folder / split / name / f"{name}_{k}.{'png' if k % 4 == 0 else 'JPEG'}")
    return folder


def coco(folder: Path) -> Path:
    """COCO 2017's two splits: polygons, run-length codes of both kinds, crowds, pictures with nothing in them."""
    (folder / "annotations").mkdir(parents=True)
    for split, count in {"train": 14, "val": 5}.items():
        (folder / f"{split}2017").mkdir()
        categories = [{"id": key, "name": name} for key, name in CATEGORIES.items()]
        index: dict[str, list[Any]] = {"images": [], "annotations": [], "categories": categories}
        for k in range(count):
            _picture(folder / f"{split}2017", k, index)
        (folder / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(index))
    return folder


def _picture(folder: Path, k: int, index: dict[str, list[Any]]) -> None:
    """One picture, of id `100 + k`; every fifth is empty, and the one after it has a crowd beside a thing."""
    from PIL import Image

    of = 100 + k
    generator = torch.Generator().manual_seed(of)
    pixels = torch.randint(0, 30, (SIDE, SIDE, 3), generator=generator)
    if k % 5 != 3:
        category = list(CATEGORIES)[k % 3]
        top, left = torch.randint(0, 20, (2,), generator=generator).tolist()
        box = (left, top, 36, 40)
        pixels[top : top + 40, left : left + 36] = torch.tensor(COLOURS[category])
        _annotate(index, of, category, box, kind=("polygon", "compressed", "two polygons")[k % 3])
    if k % 5 == 4:
        pixels[50:, 50:] = torch.tensor(COLOURS[18])
        _annotate(index, of, 18, (50, 50, 14, 14), kind="crowd")
        _annotate(index, of, 18, (3, 3, 1, 1), kind="polygon")  # too small to learn from
    image = Image.fromarray(pixels.to(torch.uint8).numpy())
    (image.convert("L") if k == 0 else image).save(folder / f"{of:012}.jpg", quality=95)
    index["images"].append({"id": of, "file_name": f"{of:012}.jpg", "height": SIDE, "width": SIDE})


def _annotate(index: dict[str, list[Any]], of: int, category: int, box: tuple[int, ...], *, kind: str) -> None:
    left, top, width, height = box
    annotation = {
        "id": len(index["annotations"]) + 1,
        "image_id": of,
        "category_id": category,
        "bbox": [float(side) for side in box],
        "area": float(width * height),
        "iscrowd": int(kind == "crowd"),
        "segmentation": _segmentation(left, top, left + width, top + height, kind),
    }
    index["annotations"].append(annotation)


def _segmentation(left: int, top: int, right: int, bottom: int, kind: str) -> Any:
    if kind == "polygon":
        return [_corners(left, top, right, bottom)]
    if kind == "two polygons":
        middle = (top + bottom) // 2
        return [_corners(left, top, right, middle), _corners(left, middle, right, bottom)]
    mask = torch.zeros(SIDE, SIDE, dtype=torch.uint8)
    mask[top:bottom, left:right] = 1
    if kind == "crowd":
        return {"size": [SIDE, SIDE], "counts": _counts(mask)}
    from pycocotools import mask as codes

    code = codes.encode(mask.T.contiguous().numpy().T)
    return {"size": [SIDE, SIDE], "counts": code["counts"].decode("ascii")}


def _corners(left: int, top: int, right: int, bottom: int) -> list[float]:
    return [float(x) for x in (left, top, right, top, right, bottom, left, bottom)]


def _counts(mask: Tensor) -> list[int]:
    """How many zeros, ones, zeros, … follow each other, down the columns."""
    found, value = [0], 0
    for pixel in mask.T.flatten().tolist():
        if pixel != value:
            found.append(0)
            value = pixel
        found[-1] += 1
    return found
