"""Which weights Muon takes, by layers and by names."""

import torch
from torch import Tensor, nn

from jorge.cost.muon_partition import hidden, is_hidden
from jorge.cost.weights import weights_of


class Transposed(nn.Module):
    """A layer as other libraries have it, which is none of torch's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(width, 3 * width)), nn.Parameter(torch.zeros(3 * width))


class PatchEmbed(Transposed):
    """Such a layer, which embeds."""


class Words(nn.Module):
    """A transformer's kinds of weights, with an output inside, which is no output layer."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.word_embeddings, self.place = nn.Embedding(9, 4), nn.Parameter(torch.zeros(5, 4))
        self.patch_embed, self.attention = PatchEmbed(4), Transposed(4)
        self.layer = nn.ModuleDict({"output": nn.ModuleDict({"dense": nn.Linear(4, 4)})})
        self.norm, self.scale = nn.LayerNorm([5, 4]), nn.Linear(4, 4).requires_grad_(False)
        self.lm_head = nn.Linear(4, 9, bias=False)
        if tied:
            self.lm_head.weight = self.word_embeddings.weight


def names(model: nn.Module) -> list[str]:
    known = {id(p): name for name, p in model.named_parameters()}
    return [known[id(p)] for p in hidden(model)]


def test_layers_of_any_library_are_taken_but_no_embeddings_outputs_norms_and_single_tensors() -> None:
    for tied in (False, True):
        assert names(Words(tied=tied)) == ["attention.weight", "layer.output.dense.weight"]
    assert names(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))) == ["0.weight"]
    assert names(nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))) == ["0.weight"]


def test_the_estimate_takes_the_same() -> None:
    model = Words()
    assert [w.name for w in weights_of(model) if w.hidden] == names(model)


def test_names_tell_where_layers_are_not_known() -> None:
    taken = ["conv1.weight", "layer1.0.conv2.weight", "h.3.attn.c_attn.weight", "encoder.0.output.dense.weight", "w"]
    left = ["fc.weight", "head.weight", "classifier.6.weight", "wte.weight", "embed_tokens.weight", "cls", "pos_embed"]
    assert [name for name in taken if not is_hidden(name, 2)] == []
    assert [name for name in left if is_hidden(name, 2)] == []
    assert not is_hidden("conv1.bias", 1)
    shapes: dict[str, tuple[int, ...]] = {"a.weight": (4, 3), "a.bias": (4,), "head.weight": (2, 4)}
    assert [w.name for w in weights_of(shapes) if w.hidden] == ["a.weight"]
    tensors: list[Tensor] = [torch.zeros(3, 2), torch.zeros(3)]
    assert [w.hidden for w in weights_of(tensors)] == [True, False]
