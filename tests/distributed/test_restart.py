"""A job whose process dies goes on from its last checkpoint, and ends where an undisturbed one ends."""

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

SCRIPT = """
import os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from pathlib import Path
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict, get_optimizer_state_dict, set_model_state_dict, set_optimizer_state_dict)
from torch.distributed.fsdp import fully_shard
from jorge import Jorge
folder, dies = Path(sys.argv[1]), sys.argv[2] == "dies"
dist.init_process_group("gloo")
rank = dist.get_rank()
aside = dist.new_group()  # what is saved in the background must not mix with the training on one group
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(20, 30), torch.nn.ReLU(), torch.nn.Linear(30, 5)).double()
fully_shard(net)
optimizer = Jorge(net.named_parameters(), lr=0.01, interval=2, warmup_refreshes=2)
state = lambda: {"model": get_model_state_dict(net), "optimizer": get_optimizer_state_dict(net, optimizer)}
done = sorted(int(path.name) for path in folder.glob("[0-9]*") if (path / ".metadata").exists())
start = done[-1] + 1 if done else 0
if done:
    loaded = state()
    dcp.load(loaded, checkpoint_id=folder / str(done[-1]))
    set_model_state_dict(net, loaded["model"])
    set_optimizer_state_dict(net, optimizer, loaded["optimizer"])
future = None
for step in range(start, 8):
    optimizer.zero_grad()
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(2 * step + rank), dtype=torch.float64)
    net(x).square().mean().backward()
    if dies and rank == 1 and step == 5 and not done:
        optimizer.distribution.transports()[0].swap = lambda *_: os._exit(9)  # in the middle of the step
    optimizer.step()
    if future is not None:
        future.result()
    future = dcp.async_save(state(), checkpoint_id=folder / str(step), process_group=aside)
future.result()
whole = [p.full_tensor() for p in net.parameters()]
if rank == 0:
    torch.save([start, whole], folder / "end.new")
    (folder / "end.new").rename(folder / "end")
dist.destroy_process_group()
"""


def run(script: Path, folder: Path, how: str) -> bool:
    """Whether a job of two processes comes to its end; one that hangs is ended, as a cluster does."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*command, str(script), str(folder), how],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )
    try:
        return process.wait(90) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_job_that_is_started_again_ends_where_an_undisturbed_one_ends(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    ends = {}
    for how in ("dies", "lives"):
        folder = tmp_path / how
        folder.mkdir()
        well = [run(script, folder, how)]
        assert how == "lives" or not well[0], "a process died"
        while not (folder / "end").exists() and len(well) < 5:  # gloo sometimes fails to connect, or aborts at the end
            well.append(run(script, folder, how))
        ends[how] = torch.load(folder / "end")
    assert ends["dies"][0] in (4, 5), "the step after the last one that was saved"
    assert all(torch.equal(p, q) for p, q in zip(ends["dies"][1], ends["lives"][1], strict=True))
