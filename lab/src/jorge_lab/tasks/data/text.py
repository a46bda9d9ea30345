"""Texts for the character-level language models: the alphabet, and rows of codes."""

from __future__ import annotations

import torch

from jorge_lab.tasks.task import Batch

#: Printable ASCII and the line break, fixed so that the model's shape is too; other characters are left out.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))


def rows(text: str, context: int) -> Batch:
    """Codes of the text in rows of `context` characters, and the characters that follow each: two `[rows, context]`."""
    index = {character: i for i, character in enumerate(ALPHABET)}
    codes = torch.tensor([index[c] for c in text if c in index])
    count = (len(codes) - 1) // context
    return codes[: count * context].view(count, context), codes[1 : count * context + 1].view(count, context)
