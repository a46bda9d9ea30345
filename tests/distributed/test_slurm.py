"""The example for SLURM, with programs in place of SLURM's own that do on this machine what those do on a cluster."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
TRAIN = """
import sys, torch, torch.distributed as dist
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from jorge import Jorge
dist.init_process_group()
model = DistributedDataParallel(torch.nn.Linear(8, 4))
optimizer = Jorge(model.named_parameters())
model(torch.ones(2, 8)).sum().backward()
optimizer.step()
optimizer.check_replicas()
(Path(sys.argv[1]) / str(dist.get_rank())).write_text(str(dist.get_world_size()))
"""


def test_its_syntax() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)


@pytest.mark.slow
def test_it_starts_the_processes(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (tmp_path / "train.py").write_text(TRAIN)
    for name, does in {
        "scontrol": "echo localhost",
        "srun": 'shift; exec "$@"',
        "torchrun": f'exec "{sys.executable}" -m torch.distributed.run "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{does}\n")
        (programs / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PORT": str(port),
        "CUDA_VISIBLE_DEVICES": "",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_JOB_ID": "1",
        "SLURM_GPUS_ON_NODE": "2",
        "SLURM_CPUS_PER_TASK": "2",
    }
    result = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "train.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=240,
        env=environment,
        check=False,
    )
    found = {rank: (tmp_path / rank).read_text() for rank in "01" if (tmp_path / rank).exists()}
    assert found == {"0": "2", "1": "2"}, result.stderr
