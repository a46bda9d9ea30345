"""`jorge compare` killed again and again while it trains, and given again: the losses of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}
#: Its loss draws random numbers.
TASK = "jorge_lab.tasks.held_out:vae"
#: Kills itself when it would put its n-th checkpoint in the place of the one before.
KILLED = """
import os, signal, sys
from pathlib import Path
from jorge.cli import main
left, replace = int(sys.argv[1]), Path.replace
def killing(self, target):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
Path.replace = killing
sys.exit(main(sys.argv[2:]))
"""


def command(optimizers: str, folder: Path, *more: object, steps: int = 40) -> list[str]:
    given = ["compare", TASK, "--size", "smoke", "--steps", steps, "--optimizers", optimizers, "--out", folder, *more]
    return list(map(str, given))


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=ENVIRONMENT, timeout=300, check=False
    )


def kept(folder: Path) -> dict[str, Any]:
    """What must be the same, by optimizer."""
    found = [json.loads(line) for line in (folder / "runs.jsonl").read_text().splitlines()]
    assert all(r["seconds"] == sorted(r["seconds"]) and len(r["seconds"]) == r["steps"] for r in found)
    same = ("key", "settings", "losses", "evaluations", "state_bytes", "diverged_at")
    return {r["optimizer"]: [r[name] for name in same] for r in found}


def test_killed_while_it_writes_checkpoints(tmp_path: Path) -> None:
    optimizers = "sgd,adamw,jorge"
    assert run("-m", "jorge", *command(optimizers, tmp_path / "whole")).returncode == 0
    assert not (tmp_path / "whole" / "checkpoints").exists(), "a smoke run has none unless it is asked for"
    folder, ends, said = tmp_path / "killed", [], []
    for _ in range(9):
        result = run("-c", KILLED, "30", *command(optimizers, folder, "--checkpoint-every", 1e-9))
        ends.append(result.returncode)
        said += [line for line in result.stdout.splitlines() if "goes on after" in line]
        if not ends[-1]:
            break
    # 39 checkpoints a run; 29 are made before each end
    assert ends == [-signal.SIGKILL] * 4 + [0]
    assert [line.split(" · ")[1:] for line in said] == [
        ["sgd", "seed 0: goes on after step 29 of 40"],
        ["adamw", "seed 0: goes on after step 19 of 40"],
        ["jorge", "seed 0: goes on after step 9 of 40"],
        ["jorge", "seed 0: goes on after step 38 of 40"],
    ]
    assert kept(folder) == kept(tmp_path / "whole")
    assert list((folder / "checkpoints").iterdir()) == []


def test_killed_with_two_workers(tmp_path: Path) -> None:
    optimizers, folder = "jorge,adamw", tmp_path / "killed"
    assert run("-m", "jorge", *command(optimizers, tmp_path / "whole", steps=400)).returncode == 0
    words = command(optimizers, folder, "--checkpoint-every", 0.01, "--workers", 2, steps=400)
    process = subprocess.Popen(
        [sys.executable, "-m", "jorge", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
    )
    deadline = time.monotonic() + 200
    while not list(folder.glob("checkpoints/*.pt")) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait(timeout=60)
    result = run("-m", "jorge", *words)
    assert "goes on after step" in result.stdout
    assert result.returncode == 0
    assert kept(folder) == kept(tmp_path / "whole")
    assert list((folder / "checkpoints").iterdir()) == []


def test_killed_fifty_times_at_any_moment(tmp_path: Path) -> None:
    """Whatever is being written then, no finished run is lost or torn, and the last command finishes the rest."""
    words = ["-m", "jorge", *command("sgd,adamw", tmp_path / "killed", "--seeds", 60, steps=4)]
    records, draw, kills = tmp_path / "killed" / "runs.jsonl", random.Random(0), 0
    before: list[str] = []
    for _ in range(50):
        process = subprocess.Popen(
            [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT
        )
        deadline, count = time.monotonic() + 60, len(before)
        while process.poll() is None and time.monotonic() < deadline:
            found = records.read_bytes().count(b"\n") if records.exists() else 0
            if found > count:  # it trains: from here on at any moment
                break
            time.sleep(0.005)
        time.sleep(draw.uniform(0, 0.15))
        process.kill()
        kills += process.wait(timeout=60) == -signal.SIGKILL
        after = records.read_text(encoding="utf-8").splitlines(keepends=True) if records.exists() else []
        whole = after if not after or after[-1].endswith("\n") else after[:-1]
        assert whole[: len(before)] == before
        assert all(json.loads(line)["steps"] == 4 for line in whole)
        before = whole
    assert kills >= 40
    assert run(*words).returncode == 0
    ended = [json.loads(line) for line in records.read_text(encoding="utf-8").splitlines()]
    assert len({(r["optimizer"], r["seed"]) for r in ended}) == len(ended) == 120
