"""Compare two optimizers on a small task: what is run on interpreters other than the one that runs all tests."""

import html
import sys
import tempfile
from pathlib import Path

from jorge.cli import main

WORDS = "compare mnist1d-mlp --size smoke --steps 20 --optimizers sgd,jorge --seeds 1 --out"
with tempfile.TemporaryDirectory() as folder:
    assert main([*WORDS.split(), folder]) == 0
    report = html.unescape((Path(folder) / "report.html").read_text(encoding="utf-8"))
assert "Jorge reaches SGD's best loss in" in report
print(f"jorge compare writes a report on Python {sys.version.split()[0]}")
