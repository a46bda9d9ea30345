"""The parameters of well-known networks as plain lists of names and shapes, so that no model library is needed.

The sums are those of the usual implementations, biases and norm vectors included; `lab/tests/cost` has the counts.
Weights stand as `[out, in, …]`, as in `torch.nn`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Shapes = list[tuple[str, tuple[int, ...]]]
Named = list[tuple[str, nn.Parameter]]


def _norm(name: str, width: int) -> Shapes:
    return [(f"{name}.weight", (width,)), (f"{name}.bias", (width,))]


def _linear(name: str, out: int, width: int) -> Shapes:
    return [(f"{name}.weight", (out, width)), (f"{name}.bias", (out,))]


def _resnet(blocks: tuple[int, ...], *, bottleneck: bool, first: int = 64) -> Shapes:
    """A ResNet for ImageNet: the stem of `first` channels, four stages of `blocks`, and the classifier."""
    shapes: Shapes = [("conv1.weight", (first, 3, 7, 7)), *_norm("bn1", first)]
    before = first
    for stage, count in enumerate(blocks):
        width = first << stage
        after = 4 * width if bottleneck else width
        for i in range(count):
            name = f"layer{stage + 1}.{i}"
            kernels = [(width, before, 1), (width, width, 3), (after, width, 1)]
            if not bottleneck:
                kernels = [(width, before, 3), (width, width, 3)]
            for j, (out, inner, side) in enumerate(kernels, 1):
                shapes += [(f"{name}.conv{j}.weight", (out, inner, side, side)), *_norm(f"{name}.bn{j}", out)]
            if before != after:
                shapes += [(f"{name}.down.weight", (after, before, 1, 1)), *_norm(f"{name}.down.bn", after)]
            before = after
    return shapes + _linear("fc", 1000, before)


def _transformer(layers: int, width: int) -> Shapes:
    """The blocks of ViT and GPT-2: two norms, attention with one matrix for q, k and v, and an MLP of four widths."""
    shapes: Shapes = []
    for i in range(layers):
        name = f"blocks.{i}"
        shapes += _norm(f"{name}.norm1", width) + _linear(f"{name}.attn.qkv", 3 * width, width)
        shapes += _linear(f"{name}.attn.proj", width, width) + _norm(f"{name}.norm2", width)
        shapes += _linear(f"{name}.mlp.up", 4 * width, width) + _linear(f"{name}.mlp.down", width, 4 * width)
    return shapes + _norm("norm", width)


def _vit_s() -> Shapes:
    width = 384
    stem: Shapes = [("cls", (1, 1, width)), ("pos", (1, 197, width)), ("patch.weight", (width, 3, 16, 16))]
    return [*stem, ("patch.bias", (width,)), *_transformer(12, width), *_linear("head", 1000, width)]


def _gpt2() -> Shapes:
    return [("wte.weight", (50257, 768)), ("wpe.weight", (1024, 768)), *_transformer(12, 768)]


def _llama7b_layer() -> Shapes:
    width, inner = 4096, 11008
    attention: Shapes = [(f"attn.{name}.weight", (width, width)) for name in "qkvo"]
    mlp: Shapes = [("mlp.gate.weight", (inner, width)), ("mlp.up.weight", (inner, width))]
    return [
        *attention,
        *mlp,
        ("mlp.down.weight", (width, inner)),
        ("norm1.weight", (width,)),
        ("norm2.weight", (width,)),
    ]


def _tiny() -> Shapes:
    """A kernel, matrices, vectors and an embedding that take no time: for `--quick` and the tests."""
    shapes: Shapes = [("wte.weight", (96, 24)), ("conv.weight", (16, 8, 3, 3)), *_norm("bn", 16)]
    return shapes + _linear("up", 64, 24) + _linear("down", 24, 64) + _linear("head", 10, 24)


MODELS: dict[str, Callable[[], Shapes]] = {
    "resnet18": lambda: _resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: _resnet((3, 4, 6, 3), bottleneck=True),
    "resnet101": lambda: _resnet((3, 4, 23, 3), bottleneck=True),
    # A quarter as wide: layers so small that launches and memory traffic weigh against products.
    "resnet50/4": lambda: _resnet((3, 4, 6, 3), bottleneck=True, first=16),
    "resnet101/4": lambda: _resnet((3, 4, 23, 3), bottleneck=True, first=16),
    "vit_s": _vit_s,
    "gpt2": _gpt2,
    "llama7b_layer": _llama7b_layer,
    "tiny": _tiny,
}


def parameters(model: str, device: torch.device) -> Named:
    """Parameters of a model with gradients, both of random numbers: what a step costs does not depend on the values."""
    generator = torch.Generator(device).manual_seed(0)

    def noise(shape: tuple[int, ...], scale: float) -> Tensor:
        return torch.randn(shape, generator=generator, device=device) * scale

    named = [(name, nn.Parameter(noise(shape, 0.02))) for name, shape in MODELS[model]()]
    for _, p in named:
        p.grad = noise(tuple(p.shape), 1e-3)
    return named


def nbytes(named: Named) -> int:
    """Bytes of the parameters."""
    return sum(p.nbytes for _, p in named)
