import json
from pathlib import Path

from jorge_lab.studies import lora


def test_every_variant_is_trained_and_its_state_weighed(tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "lora.json"
    short = ["--ranks", "4", "--rates", "0.01", "--seeds", "1", "--steps", "5", "--width", "300"]
    lora.main([*short, "--out", str(out)], said.append)
    rows = json.loads(out.read_text())["rows"]
    assert [row["optimizer"] for row in rows] == list(lora.VARIANTS)
    state = {row["optimizer"]: row["state_bytes"] for row in rows}
    assert state["AdamW"] < state["Jorge, max_dim=256"] < state["Jorge, block_size=32"] < state["Jorge"]
