"""What PyTorch's tutorials of FSDP2 and of tensor parallel do, with Jorge put in: what one process ends with."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    loss_parallel,
    parallelize_module,
)

from jorge import Jorge
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.distributed.test_strategies import off

pytestmark = pytest.mark.slow


class Block(nn.Module):
    """Attention and a gated perceptron, with the names of the tutorial."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads, self.size = 4, width // 4
        self.wq, self.wk, self.wv, self.wo = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.w1, self.w2 = nn.Linear(width, 48, bias=False), nn.Linear(48, width, bias=False)
        self.attention_norm, self.ffn_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.enter_attention, self.enter_ffn = nn.Identity(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter_attention(self.attention_norm(x))
        q, k, v = (w(h).unflatten(-1, (-1, self.size)).transpose(1, 2) for w in (self.wq, self.wk, self.wv))
        x = x + self.wo(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        found: Tensor = x + self.w2(F.silu(self.w1(self.enter_ffn(self.ffn_norm(x)))))
        return found


class Transformer(nn.Module):
    """Two blocks between an embedding and its logits."""

    def __init__(self) -> None:
        super().__init__()
        self.tok_embeddings = nn.Embedding(40, 16)
        self.layers = nn.ModuleList(Block(16) for _ in range(2))
        self.norm, self.output = nn.LayerNorm(16), nn.Linear(16, 40, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_embeddings(tokens)
        for layer in self.layers:
            x = layer(x)
        logits: Tensor = self.output(self.norm(x))
        return logits


def new() -> Transformer:
    torch.manual_seed(0)
    return Transformer().double()


def train(net: nn.Module, optimizer: Jorge, steps: range, part: int = 0, parts: int = 1) -> None:
    """With the norm of the gradients clipped."""
    for step in steps:
        tokens = torch.randint(0, 40, (4, 8), generator=torch.Generator().manual_seed(step)).chunk(parts)[part]
        optimizer.zero_grad()
        F.cross_entropy(net(tokens).flatten(0, 1), tokens.flatten()).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()


def alone(steps: int) -> dict[str, Tensor]:
    net = new()
    train(net, Jorge(net.named_parameters(), **jobs.OPTIONS, distributed=None), range(steps))
    return jobs.weights(net)


def sharded() -> tuple[nn.Module, Jorge]:
    """As the tutorial begins: from the device `meta`, with the next layer fetched meanwhile."""
    with torch.device("meta"):
        net = Transformer().double()
    for layer in net.layers:
        fully_shard(layer)
    fully_shard(net)
    net.layers[0].set_modules_to_forward_prefetch([net.layers[1]])  # type: ignore[operator]
    net.to_empty(device="cpu")
    return net, Jorge(net.named_parameters(), **jobs.OPTIONS)


def fsdp(rank: int, world: int) -> dict[str, Tensor]:
    whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
    spread = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    net, optimizer = sharded()
    set_model_state_dict(net, new().state_dict() if rank == 0 else {}, options=spread)
    train(net, optimizer, range(4), rank, world)
    weights = get_model_state_dict(net, options=whole)
    state = get_optimizer_state_dict(net, optimizer, options=whole)
    other, fresh = sharded()
    set_model_state_dict(other, weights if rank == 0 else {}, options=spread)
    set_optimizer_state_dict(other, fresh, state if rank == 0 else {}, options=spread)
    train(other, fresh, range(4, 8), rank, world)
    return jobs.weights(other)


def test_fsdp2(pool: Pool) -> None:
    for found in pool.run(2, fsdp):
        assert off(found, alone(8)) < 1e-10


def parallel(rank: int, world: int) -> dict[str, Tensor]:
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("data", "model"))
    net = new()
    split = {
        "tok_embeddings": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "output": ColwiseParallel(input_layouts=Shard(1), output_layouts=Shard(-1), use_local_output=False),
    }
    gather = PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),))
    inside: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in ("wq", "wk", "wv", "w1")}
    inside |= {name: RowwiseParallel(output_layouts=Shard(1)) for name in ("wo", "w2")}
    inside |= {name: SequenceParallel() for name in ("attention_norm", "ffn_norm")}
    inside |= {"enter_attention": gather, "enter_ffn": gather}
    parallelize_module(net, mesh["model"], split)
    for layer in net.layers:
        parallelize_module(layer, mesh["model"], inside)
    if world > 2:
        fully_shard(net, mesh=mesh["data"])
    optimizer = Jorge(net.named_parameters(), **jobs.OPTIONS)
    with loss_parallel():
        train(net, optimizer, range(8), rank // 2, world // 2)
    optimizer.check_replicas()
    return jobs.weights(net)


@pytest.mark.parametrize("world", [2, 4])
def test_tensor_parallel(pool: Pool, world: int) -> None:
    for found in pool.run(world, parallel):
        assert off(found, alone(8)) < 1e-10
