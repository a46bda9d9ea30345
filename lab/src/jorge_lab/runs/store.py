"""Where records of runs are kept: files of a JSON object a line, which grow while runs are done."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jorge_lab.errors import LabError, UsageError

Record = dict[str, Any]


class RecordsError(LabError):
    """There are no records where they were looked for; the message says what is wrong with the place."""


def read_lines(path: Path) -> list[Record]:
    """The objects of a `.jsonl` or `.jsonl.gz` file; lines that were cut off, and what is no object, are left out.

    Raises:
        RecordsError: the file cannot be read.
    """
    try:
        data = path.read_bytes()
        text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise RecordsError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
    records = []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


@dataclass(frozen=True)
class Store:
    """The records in a file of an output folder."""

    path: Path

    @classmethod
    def open(cls, folder: Path, file: str) -> Store:
        """Make the folder, and see that the file in it can be written.

        Raises:
            UsageError: it cannot.
        """
        path = folder / file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError as error:
            raise UsageError(f"cannot write to --out {folder}: {error.strerror}. name another folder") from None
        return cls(path)

    def read(self) -> list[Record]:
        """All records, as :func:`read_lines`."""
        return read_lines(self.path)

    def add(self, record: Record) -> None:
        """Add a line, on the disk before the next run starts; a line that was cut off is ended first.

        Raises:
            UsageError: the disk is full, or cannot be written for another reason.
        """
        try:
            self._add(record)
        except OSError as error:
            raise UsageError(
                f"cannot write {self.path}: {error.strerror}. The last run is not kept, those before it are: make "
                "room, and give the same command again"
            ) from None

    def _add(self, record: Record) -> None:
        with self.path.open("ab+") as file:
            file.seek(0, os.SEEK_END)
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write((json.dumps(record, separators=(",", ":")) + "\n").encode())
            file.flush()
            os.fsync(file.fileno())
