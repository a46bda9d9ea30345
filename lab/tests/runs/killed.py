"""`python -m lab.tests.runs.killed N …`: `jorge …`, killed when it would put its N-th checkpoint in its place."""

import os
import signal
import sys
from pathlib import Path

from jorge.cli import main

left, replace = int(sys.argv.pop(1)), Path.replace


def killing(self: Path, target: Path) -> Path:
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)


if __name__ == "__main__":
    Path.replace = killing  # type: ignore[method-assign, assignment]
    sys.exit(main())
