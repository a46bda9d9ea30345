"""Where and when something was measured."""

from __future__ import annotations

import datetime as dt
import platform
from pathlib import Path
from typing import Any

import torch

import jorge
from jorge_lab.runs.team import Team


def environment(device: torch.device) -> dict[str, Any]:
    """Machine, versions and date of a run; the number of processes where several train it together."""
    processes = Team.here().size
    return {
        "jorge": jorge.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        **({"processes": processes} if processes > 1 else {}),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
    }


def processor() -> str:
    """The processor's name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} cores" if names else platform.processor() or platform.machine()
