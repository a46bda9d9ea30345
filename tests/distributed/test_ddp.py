"""Two real processes with gloo: every rank ends with the same weights and the same state."""

import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from jorge import Jorge

pytestmark = pytest.mark.slow


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 2)))
    optimizer = Jorge(model.named_parameters(), lr=0.05, warmup_refreshes=5, interval=3)
    generator = torch.Generator().manual_seed(rank)
    for _ in range(60):  # until refreshes stand for several and are damped
        x = torch.randn(8, 6, generator=generator)
        optimizer.zero_grad()
        (model(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
    torch.save([[p.detach() for p in model.parameters()], optimizer.state_dict()["state"]], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _refuse(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import distribute_tensor

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=1)
    sharded = nn.Parameter(distribute_tensor(torch.ones(4, 4), init_device_mesh("cpu", (1,))))
    with pytest.raises(TypeError, match=r"'layer' .* is a DTensor: sharded parameters are not supported yet"):
        Jorge([("layer", sharded)], lr=0.1)
    dist.destroy_process_group()


def test_sharded_parameters_are_refused_by_name() -> None:
    with tempfile.TemporaryDirectory() as folder:
        spawn(_refuse, args=(folder,), nprocs=1)  # type: ignore[no-untyped-call]


def test_ranks_agree_to_the_bit() -> None:
    with tempfile.TemporaryDirectory() as folder:
        spawn(_worker, args=(folder,), nprocs=2)  # type: ignore[no-untyped-call]
        (weights, state), (others, other_state) = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(a, b) for a, b in zip(weights, others, strict=True))
    for i, values in state.items():
        for name, value in values.items():
            same = torch.equal(value, other_state[i][name]) if name != "step" else value == other_state[i][name]
            assert same, name
