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
import datetime, os, sys, torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
from pathlib import Path
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict, get_optimizer_state_dict, set_model_state_dict, set_optimizer_state_dict)
from torch.distributed.fsdp import fully_shard
from jorge import Jorge
folder, dies = Path(sys.argv[1]), sys.argv[2] == "dies"
attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=20))  # gloo does not always connect
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
if future is not None:
    future.result()
whole = [p.full_tensor() for p in net.parameters()]
if rank == 0 and start < 8:  # or it was written, and gloo has aborted at the end of a process
    torch.save([attempt, start, whole], folder / "end.new")
    (folder / "end.new").rename(folder / "end")
dist.destroy_process_group()
"""


def run(script: Path, folder: Path, how: str) -> None:
    """A job of two processes, which torchrun starts again where one dies; one that hangs is ended, as clusters do."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    process = subprocess.Popen(
        [*command, "--max-restarts", "5", str(script), str(folder), how],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        start_new_session=True,
    )
    try:
        process.wait(120)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun then ends its processes, which are in sessions of their own
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.slow
def test_a_job_that_torchrun_starts_again_ends_where_an_undisturbed_one_ends(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    ends = {}
    for how in ("dies", "lives"):
        for job in range(3):  # gloo may hang while it connects, whatever the optimizer
            folder = tmp_path / f"{how}{job}"
            folder.mkdir()
            run(script, folder, how)
            if (folder / "end").exists():
                break
        ends[how] = torch.load(folder / "end")
    attempt, start, weights = ends["dies"]
    assert attempt > 0
    assert start in (4, 5), "the step after the last one that was saved"
    assert all(torch.equal(p, q) for p, q in zip(weights, ends["lives"][2], strict=True))
