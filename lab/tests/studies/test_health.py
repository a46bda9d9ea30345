import json
from pathlib import Path

from jorge_lab.studies import health


def test_sick_runs_show(tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "health.json"
    health.main(
        ["--size", "smoke", "--steps", "9", "--tasks", "mnist", "--out", str(out), "--images", str(tmp_path)],
        said.append,
    )
    assert len(said) == 4
    runs = {run["run"]: run["seen"] for run in json.loads(out.read_text())["tasks"]["mnist"]["runs"]}
    assert runs["overflow"][-1]["skipped_steps"] == 6
    assert runs["overflow"][-1]["update_norm"] == 0
    assert runs["healthy"][-1]["skipped_steps"] == 0
    assert runs["dead layer"][-1]["without_gradient"] > runs["healthy"][-1]["without_gradient"] == 0
    assert runs["lr × 10"][0]["update_norm"] > 5 * runs["healthy"][0]["update_norm"]
    assert (tmp_path / "health-mnist.svg").read_text().startswith("<svg")
