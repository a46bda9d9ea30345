"""Which weights Muon takes, and which it leaves to AdamW: embeddings, output layers, norms, biases and single tensors.

So its authors advise (K. Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024).
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

#: What output layers are called; in a model without such names it is the last layer that is not recurrent.
_OUTPUT = {"head", "lm_head", "classifier", "fc", "output", "logits"}
#: What embeddings, and single tensors that stand for tokens or places, are called, beside all that has "embed" in it.
_EMBEDDING = {"wte", "wpe", "cls", "cls_token", "pos"}
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_FEEDFORWARD = (nn.Linear, _ConvNd, nn.MultiheadAttention)


def hidden(model: nn.Module) -> list[nn.Parameter]:
    """The weights of a model that Muon takes, of two dims or more, each once.

    They are those of linear, attention, recurrent and convolutional layers, and of other libraries' layers whose matrix
    is called `weight`, but for the output layer's. A weight that an embedding shares is left out too.
    """
    layers = {name: module for name, module in model.named_modules() if _is_layer(name, module)}
    feedforward = [m for m in layers.values() if not isinstance(m, _RECURRENT)]
    output = [m for name, m in layers.items() if _is_output(name)] or feedforward[-1:]
    embeddings = [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]
    others = {id(p) for m in (*output, *embeddings) for p in m.parameters()}
    weights = [
        p
        for m in layers.values()
        for p in m.parameters(recurse=False)
        if p.requires_grad and not nn.parameter.is_lazy(p) and p.dim() >= 2
    ]
    return [p for p in {id(p): p for p in weights}.values() if id(p) not in others]


def is_hidden(name: str, dims: int) -> bool:
    """Whether Muon takes a weight of which only the name and the number of dims are known.

    >>> [is_hidden(name, 2) for name in ("blocks.0.up.weight", "head.weight", "model.embed_tokens.weight", "pos")]
    [True, False, False, False]
    """
    layer = name.rpartition(".")[0] or name
    return dims >= 2 and not _is_output(layer) and not _is_embedding(layer)


def _is_layer(name: str, module: nn.Module) -> bool:
    if isinstance(module, (*_RECURRENT, *_FEEDFORWARD)):
        return True
    weight = module._parameters.get("weight")
    foreign = not type(module).__module__.startswith("torch.") and not _is_embedding(name)
    return foreign and weight is not None and not nn.parameter.is_lazy(weight) and weight.dim() >= 2


def _is_output(layer: str) -> bool:
    """Whether a layer, or the module of the model that it is in, is called so; not what lies between the two."""
    parts = layer.split(".")
    return bool(_OUTPUT & {parts[0], parts[-1]})


def _is_embedding(layer: str) -> bool:
    return any("embed" in part or part in _EMBEDDING for part in layer.split("."))
