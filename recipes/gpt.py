"""A GPT on text, on a file of tokens, or on the 124M-parameter speed-run's data: steps to a validation loss of 3.28.

The data are `.txt` files, whose bytes are the tokens, or `.bin` files of tokens of 16 bits, bare or with the header of
the speed-run's shards, in a folder. Files that have `val` in their names are the validation set; without such it is the
last twentieth. The model is the speed-run's: rotary positions, norms without a bias, squared ReLU, bounded logits.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from jorge import param_groups
from recipes.loop import Result, prepared, started
from recipes.order import Batch, Job, shares
from recipes.settings import Recipe, parser


def _down(done: float) -> float:
    """As it is for three tenths of the training, then straight to zero."""
    return min(1.0, (1 - done) / 0.7)


RECIPE = Recipe(
    batch_size=512,
    epochs=1,
    sgd=None,
    adamw={"lr": 1.5e-3, "betas": (0.9, 0.95), "weight_decay": 0.125},
    transferred="adamw",
    decay=_down,
    warmup_steps=250,
    clip=1.0,
)
#: What the speed-run holds fixed, and where it looks.
SPEEDRUN = {"layers": 12, "width": 768, "heads": 6, "context": 1024, "vocabulary": 50304, "batch_size": 512}
SPEEDRUN |= {"steps": 5625, "evaluate_every": 125, "validate": 10_485_760}
#: Of the files of the speed-run: a magic number, a version, and the count of tokens, in 256 numbers of 32 bits.
MAGIC, HEADER = 20240520, 256


def tokens_of(file: Path) -> Tensor:
    """The tokens of a file; those of a `.bin` are mapped, not read."""
    size = file.stat().st_size
    if file.suffix == ".txt":
        return torch.from_file(str(file), shared=False, size=size, dtype=torch.uint8)
    found = torch.from_file(str(file), shared=False, size=size // 2, dtype=torch.uint16)
    head = found[: 2 * HEADER].view(torch.int32) if len(found) >= 2 * HEADER else found
    if head[0] != MAGIC:
        return found
    return found[2 * HEADER :][: int(head[2])]


class Windows(Dataset[Tensor]):
    """Stretches of `context + 1` tokens, one beginning where the one before it has its last.

    Args:
        parts: tokens, a tensor for each file; no stretch goes over an end.
        context: how many tokens are read at once.
    """

    def __init__(self, parts: Sequence[Tensor], context: int) -> None:
        self.parts, self.context = parts, context
        self.ends = list(accumulate((len(part) - 1) // context for part in parts))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, at: int) -> Tensor:
        which = bisect_right(self.ends, at)
        first = (at - (self.ends[which - 1] if which else 0)) * self.context
        return self.parts[which][first : first + self.context + 1].long()


def data(folder: Path, context: int, validate: int) -> tuple[Windows, Windows]:
    """The training set, and of the validation set its first `validate` tokens."""
    files = sorted([*folder.glob("*.bin")] or [*folder.glob("*.txt")])
    if not files:
        raise SystemExit(f"{folder} has neither .bin nor .txt files")
    train = [tokens_of(file) for file in files if "val" not in file.stem]
    val = [tokens_of(file) for file in files if "val" in file.stem]
    if not val:
        cut = len(train[-1]) - max(context + 1, sum(map(len, train)) // 20)
        train[-1], val = train[-1][:cut], [train[-1][cut:]]
    val[0] = val[0][: validate + 1]
    return Windows(train, context), Windows(val[:1], context)


class Attention(nn.Module):
    """Causal, with queries and keys of length 1 that are turned by their positions (arXiv 2104.09864)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Of `[batch, tokens, width]`."""
        q, k, v = (part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.q, self.k, self.v))
        q, k = (turned(functional.rms_norm(part, part.shape[-1:])) for part in (q, k))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.12)
        out: Tensor = self.proj(seen.transpose(1, 2).flatten(-2))
        return out


def turned(x: Tensor) -> Tensor:
    """Half of the pairs of `[…, tokens, size]` turned by their positions, at rates from 1 down to 1/1024 a token."""
    pairs = x.shape[-1] // 2
    rates = torch.zeros(pairs, device=x.device)
    rates[: pairs // 2] = 1024 ** -torch.linspace(0, 1, pairs // 2, device=x.device)
    angles = torch.arange(x.shape[-2], device=x.device)[:, None] * rates
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos + second * sin, second * cos - first * sin], -1)


class Block(nn.Module):
    """Attention and a perceptron of four widths, each behind a norm and added."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Of `[batch, tokens, width]`."""
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.down(self.up(self.norm2(x)).relu().square())
        return out


class GPT(nn.Module):
    """The speed-run's simple model, at any size; what adds to the stream of activations begins at zero."""

    def __init__(self, vocabulary: int, layers: int, width: int, heads: int) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        for name, p in self.named_parameters():
            if name.endswith(("bias", "proj.weight", "down.weight", "head.weight")):
                nn.init.zeros_(p)
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02 if p is self.embed.weight else math.sqrt(0.33 / p.shape[1]))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits `[batch, tokens, vocabulary]` of `[batch, tokens]`, between -15 and 15."""
        x = self.norm1(self.embed(tokens))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm2(x)).float()
        bounded: Tensor = 15 * logits * (logits.square() + 15**2).rsqrt()
        return bounded


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """Cross-entropy of each next token, in nats."""
    return functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


def validation(model: nn.Module, val: Windows, job: Job, args: Any) -> dict[str, float]:
    """The loss on the validation set."""
    sums = torch.zeros(2, dtype=torch.double, device=job.device)
    for batch, real in shares(val, job, args, args.evaluation_batch):
        if real:
            sums += torch.stack([real * loss(model, batch[:real]).double(), sums.new_tensor(real)])
    total, count = job.sum(sums).tolist()
    return {"val_loss": total / count}


def main(argv: Sequence[str] | None = None, build: Callable[..., nn.Module] = GPT) -> Result:
    """Train; `build` makes another model than the speed-run's."""
    found = parser("gpt", __doc__, RECIPE)
    for name, default in {"layers": 6, "width": 384, "heads": 6, "context": 256, "vocabulary": 256}.items():
        found.add_argument(f"--{name}", type=int, default=default)
    found.add_argument("--speedrun", action="store_true", help="the sizes of the speed-run, and its target")
    found.add_argument("--target", type=float, help="end where the validation loss is no higher")
    found.add_argument("--validate", type=int, default=2**20, help="tokens of the validation set")
    found.add_argument("--evaluation-batch", type=int, default=16, help="of each process")
    if found.parse_args(argv).speedrun:
        found.set_defaults(target=3.28, **SPEEDRUN)
    args = found.parse_args(argv)
    with started(args) as job:
        train, val = data(args.data, args.context, args.validate)
        model = build(args.vocabulary, args.layers, args.width, args.heads)
        training = prepared(
            args,
            job,
            RECIPE,
            model,
            len(train),
            loss,
            lambda bare: validation(bare, val, job, args),
            blocks=model.blocks if isinstance(model, GPT) else (),
            groups=param_groups,
            target=lambda scores: args.target is not None and scores["val_loss"] <= args.target,
        )
        return training.run(train)


if __name__ == "__main__":
    main()
