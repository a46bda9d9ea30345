"""How the cost grows with the number of processes."""

from pathlib import Path

import pytest
import torch

from jorge.cost.distributed import Strategy
from jorge_lab.cost import scaling


def test_the_shapes_are_those_of_the_models() -> None:
    counts = {name: sum(torch.Size(s).numel() for s in make().values()) for name, make in scaling.MODELS.items()}
    assert counts["gpt2_xl"] == pytest.approx(1.557e9, rel=2e-3)
    assert counts["llama7b"] == pytest.approx(6.738e9, rel=2e-3)


def test_the_page_has_the_rows() -> None:
    page = (Path(__file__).parents[3] / "docs" / "generated" / "scaling.md").read_text()
    cases: list[tuple[str, Strategy, int]] = [("resnet50", "fsdp", 8), ("resnet50", "ddp", 64), ("gpt2_xl", "ddp", 4)]
    rows = [scaling.row(*case, flops=5e13, bandwidth=5e10) for case in cases]
    for line in scaling.table(rows).splitlines():
        assert line in page


@pytest.mark.slow
def test_it_prints_a_row_for_each_size_and_times_processes(capsys: pytest.CaptureFixture[str]) -> None:
    assert scaling.main(["--models", "tiny", "--sizes", "1", "3", "--measure", "1", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| tiny") for line in lines) == 6
    assert "2 processes" in lines[-1]
