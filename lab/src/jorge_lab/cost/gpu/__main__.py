"""Everything about Jorge on one GPU, torch alone, within six minutes: `python -m jorge_lab.cost.gpu --out gpu.json`.

Correctness against the CPU, the cost of a step and of an iteration for ResNet-50, ViT-S and GPT-2 small against fused
SGD, fused AdamW and Muon, a step of SOAP's and Shampoo's where their packages are installed, and one task to its target
in seconds. Each section is bounded, and its figures are in `--out` as soon as it ends. `--tiny` runs all of it on a
CPU. `--tables FILE` prints the tables of figures on disk.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from jorge_lab.cost import harness
from jorge_lab.cost.gpu.correctness import CHECKS
from jorge_lab.cost.gpu.models import TRAININGS
from jorge_lab.cost.gpu.session import Session
from jorge_lab.cost.gpu.tables import failures, report
from jorge_lab.cost.gpu.task import to_target
from jorge_lab.cost.gpu.timing import ALONE, CAPTURED, ITERATED, SLOW, ceilings, iterations, steps_alone


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections and print the tables; the exit status is 1 where something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write the figures as JSON")
    parser.add_argument("--budget", type=float, default=330.0, metavar="SECONDS", help="for all (default: 330)")
    parser.add_argument("--tiny", action="store_true", help="small sizes: does it run?")
    parser.add_argument("--only", nargs="+", metavar="SECTION", help="sections whose names begin so")
    parser.add_argument("--tables", type=Path, metavar="FILE.json", help="print the tables of these figures, no more")
    args = parser.parse_args(argv)
    if args.tables:
        found = json.loads(args.tables.read_text())
        print(harness.heading(found["environment"]), report(found), sep="\n\n")
        return 0
    device = torch.device(args.device)
    if device.type != "cuda" and not args.tiny:
        parser.error("there is no CUDA device here; --tiny shows on a CPU that everything runs")
    session = Session(device, args.budget, args.out, tiny=args.tiny)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    session.keep("environment", {**harness.where(device), "tiny": args.tiny})
    # Captured graphs come last: a mistake there can end what the process may do on the device.
    sections: dict[str, tuple[float, Callable[[], Any]]]
    sections = {name: (15.0, partial(check, session)) for name, check in CHECKS.items() if name != "graphs"}
    sections["ceilings"] = (5.0, partial(ceilings, session))
    for name in TRAININGS:
        sections[f"iteration, {name}"] = (30.0, partial(iterations, session, ITERATED, name))
    for name in TRAININGS:
        sections[f"step, {name}"] = (30.0, partial(steps_alone, session, ALONE, name))
    sections["task"] = (40.0, partial(to_target, session))
    for name in TRAININGS:
        sections[f"slow, {name}"] = (90.0, partial(steps_alone, session, SLOW, name))  # and time for what follows
    for name in TRAININGS:
        sections[f"captured, {name}"] = (10.0, partial(steps_alone, session, CAPTURED, name))
    sections["graphs"] = (10.0, partial(CHECKS["graphs"], session))
    for name, (needs, body) in sections.items():
        if not args.only or name.startswith(tuple(args.only)):
            session.section(name, 0.0 if args.tiny else needs, body)
    print(harness.heading(session.found["environment"]), report(session.found), sep="\n\n")
    bad = failures(session.found)
    print(*(f"not as it should be: {line}" for line in bad), sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
