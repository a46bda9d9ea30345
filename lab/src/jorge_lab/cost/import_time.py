"""Milliseconds that `import jorge` takes over `import torch`: `python -m jorge_lab.cost.import_time`.

Processes in turns, which have all imported torch; medians, less that of importing nothing.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from jorge_lab.cost import harness
from jorge_lab.cost.harness import Spread

_TIMED = """
import time
import torch
started = time.perf_counter()
{statement}
print(time.perf_counter() - started)
"""
CASES = {"nothing": "pass", "jorge": "import jorge", "jorge.cost": "import jorge.cost"}


def seconds(statement: str) -> float:
    """Seconds that a statement takes in a fresh process that has imported torch."""
    code = _TIMED.format(statement=statement)
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return float(ran.stdout)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = harness.parser(__doc__, [], [], [])
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args(argv)
    if args.quick:
        args.rounds = 2
    found = harness.where(harness.start(args))
    print(harness.heading(found) + "\n")
    samples: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(args.rounds):
        for name, statement in CASES.items():
            samples[name].append(seconds(statement))
    medians = {name: 1e3 * Spread.of(taken).median for name, taken in samples.items()}
    nothing = medians.pop("nothing")
    rows = [{"import": name, "ms": median - nothing} for name, median in medians.items()]
    lines = [[f"`{row['import']}`", f"{row['ms']:.1f}"] for row in rows]
    print(harness.table(["import", "ms over torch"], lines))
    harness.write(args.out, {"environment": found, "rows": rows})


if __name__ == "__main__":
    main()
