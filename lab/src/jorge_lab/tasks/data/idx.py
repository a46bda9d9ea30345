"""Reader of IDX files, the format that MNIST and its relatives are published in."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

_UINT8 = 0x08


def read(path: Path) -> Tensor:
    """The array of bytes in an IDX file, as uint8; a path that ends in `.gz` is decompressed.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no IDX file of bytes, or not a whole one.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} cannot be decompressed: {error}") from None
    if len(content) < 4 or content[:3] != bytes((0, 0, _UINT8)):
        raise ValueError(f"{path} is not an IDX file of bytes")
    start = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:start]) if len(content) >= start else (0,)
    if len(content) != start + math.prod(shape):
        raise ValueError(f"{path} is not a whole IDX file: its length is not what its first bytes say")
    # a copy that can be written to: torch warns of tensors over constant memory
    return torch.frombuffer(bytearray(content), dtype=torch.uint8, offset=start).view(shape)
