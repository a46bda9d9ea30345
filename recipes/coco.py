"""COCO as it lies on disk: `train2017`, `val2017`, and `annotations/instances_*2017.json`."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor

Annotation = dict[str, Any]


class Coco:
    """The pictures of one split and what is annotated in them.

    Args:
        root: the folder of the data set.
        split: `"train"` or `"val"`.
    """

    def __init__(self, root: Path, split: str) -> None:
        self.folder = root / f"{split}2017"
        with contextlib.redirect_stdout(io.StringIO()):  # it tells how long each index takes
            self.index = COCO(root / "annotations" / f"instances_{split}2017.json")
        self.ids: list[int] = sorted(self.index.imgs)

    def image(self, of: int) -> Image.Image:
        """The picture of an id, in colours: some are grey on disk."""
        return Image.open(self.folder / self.index.imgs[of]["file_name"]).convert("RGB")

    def size(self, of: int) -> tuple[int, int]:
        """Height and width."""
        return self.index.imgs[of]["height"], self.index.imgs[of]["width"]

    def annotations(self, of: int) -> list[Annotation]:
        """All of a picture, crowds among them; a picture may have none."""
        found: list[Annotation] = self.index.imgToAnns[of]
        return found

    def mask(self, annotation: Annotation) -> Tensor:
        """Where it is, `[height, width]` of bool, be it polygons or a run-length code, compressed or not."""
        return torch.from_numpy(self.index.annToMask(annotation)).bool()
