"""The script for a GPU, in small on the CPU: every section runs, finds nothing wrong, and is kept as it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from jorge import Jorge, arrange, graphs
from jorge.cost import estimate
from jorge_lab.contenders.parts import as_matrix
from jorge_lab.cost.contenders import LATE
from jorge_lab.cost.gpu import __main__ as script
from jorge_lab.cost.gpu import correctness, models, tables
from jorge_lab.cost.gpu.optimizers import PACKAGED, build, interval, kind_of, settle
from jorge_lab.cost.gpu.session import Session
from jorge_lab.cost.kernels import CudaMeter
from jorge_lab.cost.muon import with_adamw
from lab.tests.report.quoted_costs import ROOT
from tests.recorded import Recorder

CPU = torch.device("cpu")


@pytest.fixture
def session(tmp_path: Path) -> Session:
    return Session(CPU, 600, tmp_path / "gpu.json", tiny=True)


def test_every_section_runs_and_finds_nothing_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for graphs."""
    out = tmp_path / "gpu.json"
    monkeypatch.setitem(graphs.RECORDERS, "cpu", Recorder)
    Recorder.forget()
    assert script.main(["--tiny", "--device", "cpu", "--out", str(out)]) == 0
    found, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert tables.failures(found) == []
    assert found["environment"]["tiny"]
    for name in models.TRAININGS:
        assert [row["optimizer"] for row in found[f"iteration, {name}"]] == ["sgd", "adamw", "muon", "jorge"]
        assert {"plain_ms", "refresh_ms"} <= found[f"step, {name}"][3].keys()
        assert {"plain_ms", "refresh_ms"} <= found[f"captured, {name}"][0].keys()
        slow = found[f"slow, {name}"]
        assert [row["optimizer"] for row in slow] == [*PACKAGED, "jorge, exact"]
        assert all("mean_ms" in row or "not installed" in row["skipped"] for row in slow)
    assert Recorder.captured == 2 * (len(models.TRAININGS) + len(found["graphs"]))  # small blocks are not damped apart
    assert Recorder.replayed > 40 * len(found["graphs"])
    assert [row["optimizer"] for row in found["task"]] == ["adamw", "jorge"]
    assert len(found["graphs"]) == 6
    assert "not as it should be" not in printed
    script.main(["--tables", str(out)])
    assert capsys.readouterr().out == printed.removesuffix("\n")


def test_a_section_that_fails_is_a_finding(session: Session) -> None:
    def fails() -> None:
        raise ValueError("no such kernel\nand more")

    session.section("one", 1, fails)
    session.section("two", 1, lambda: [{"case": "a", "ok": True}, {"case": "b", "ok": False}])
    session.section("three", 1e6, list)
    assert session.out is not None
    kept = json.loads(session.out.read_text())
    assert kept["one"] == {"failed": "ValueError: no such kernel"}
    assert "are left" in kept["three"]["skipped"]
    assert [line.split(":")[0] for line in tables.failures(kept)] == ["one", "two"]


def test_replays_that_differ_say_where_first(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(optimizer: Jorge) -> None:
        steps = iter(range(1, 1000))
        whole: Any = optimizer.step
        monkeypatch.setattr(optimizer, "step", lambda: whole() if next(steps) != 5 else None)

    monkeypatch.setattr(correctness, "capture_all", forgetful)
    rows = correctness.graphs(session)
    assert not any(row["ok"] for row in rows)
    assert {(row["first"]["step"], row["first"]["kind"]) for row in rows} == {(4, "refresh")}
    assert "linear" in rows[0]["first"]["what"]


def test_full_sizes_are_those_of_the_names() -> None:
    with torch.device("meta"):
        counts = {name: sum(p.numel() for p in each.shape()[0].parameters()) for name, each in models.TRAININGS.items()}
    assert counts == {"resnet50": 25_557_032, "vit-s": 22_050_664, "gpt2": 124_439_808}


def test_kinds_are_those_of_the_schedule() -> None:
    model, loss = models.build("vit-s", True, CPU)
    loss().backward()  # type: ignore[no-untyped-call]
    optimizer = build("jorge", model, "adamw", CPU).optimizer
    assert isinstance(optimizer, Jorge)
    kinds = [kind_of(optimizer, LATE + step) for step in range(1, 7 * interval(optimizer) + 1)]
    assert kinds.count("plain") == 28
    assert kinds.count("refresh") == 6
    assert kinds.count("damped") == 1
    settle(optimizer, 17)
    assert {entry["step"] for entry in optimizer.state.values()} == {17}


def test_muon_takes_kernels_in_channels_last_as_it_takes_others() -> None:
    ends = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        hidden = nn.Conv2d(8, 8, 3, bias=False)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), hidden)
        model.to(memory_format=memory_format)  # type: ignore[call-overload]
        weight = hidden.weight
        assert isinstance(weight, nn.Parameter)
        assert as_matrix(weight).data_ptr() == weight.data_ptr()
        optimizer = with_adamw(list(model.named_parameters()), torch.optim.Muon, 0.1)
        model(torch.ones(1, 3, 8, 8).to(memory_format=memory_format)).square().sum().backward()
        before = hidden.weight.detach().clone()
        optimizer.step()
        ends.append(hidden.weight.detach() - before)
    assert torch.allclose(ends[0], ends[1], atol=2e-3)
    assert ends[0].abs().max() > 0.01


def test_without_a_gpu_only_the_small_form_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["--device", "cpu"])
    assert "--tiny" in capsys.readouterr().err


def _meters(name: str, dtype: torch.dtype | None = None, **options: Any) -> tuple[list[CudaMeter], int]:
    """Of a plain and of a refreshing step, without memory; and the parameters."""
    training = models.TRAININGS[name]
    with torch.device("meta"):
        model, _ = training.shape()
    if dtype is not None:
        model.to(dtype)
    if name == "resnet50":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    grafting: Any = "sgd" if training.baseline == "sgd" else "adam"
    optimizer = Jorge(model.named_parameters(), grafting=grafting, weight_decay=1e-2, **options)
    optimizer.step()
    meters = []
    for before in (0, interval(optimizer) - 1):
        settle(optimizer, LATE + before)
        with CudaMeter() as meter:
            optimizer.step()
        assert meter.waits == 0
        meters.append(meter)
    return meters, sum(p.numel() for p in model.parameters())


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arranged as on CUDA, though there is no memory."""
    monkeypatch.setattr(
        "jorge.store.arrange", lambda specs, options, **_: arrange.arrange(specs, options, on_cuda=True)
    )


@pytest.mark.parametrize("name", models.TRAININGS)
def test_counted_kernels_are_those_that_the_profiler_saw(name: str, as_on_cuda: None) -> None:
    found = json.loads((ROOT / "lab" / "records" / "gpu.json").read_text())
    (seen,) = (row for row in found[f"step, {name}"] if row["optimizer"] == "jorge")
    plain, refreshing = (meter.kernels for meter in _meters(name)[0])
    # Since the record a refresh calculates what is one number a block for all stacks at once, a step without one takes
    # some numbers from the state, and there is one momentum where there were two: both launch fewer kernels.
    assert 0.65 * seen["refresh_kernels"] <= refreshing <= seen["refresh_kernels"]
    assert 0.85 * seen["plain_kernels"] <= plain <= 1.05 * seen["plain_kernels"]


@pytest.mark.parametrize(
    ("name", "options", "most", "moved"),
    [
        ("resnet50", {}, (230, 560), 105),
        ("resnet50", {"block_size": 256}, (230, 600), 105),
        ("resnet50", {"dtype": torch.bfloat16}, (280, 610), 113),
        ("vit-s", {"block_size": 256}, (195, 450), 170),
        ("gpt2", {"block_size": 256}, (290, 710), 178),
    ],
)
def test_a_step_is_few_kernels_and_bytes(
    name: str, options: dict[str, Any], most: tuple[int, int], moved: int, as_on_cuda: None
) -> None:
    """Kernels of a plain and of a refreshing step, and bytes a parameter of a plain one: ResNet-50 in channels_last."""
    (plain, refreshing), count = _meters(name, **options)
    assert plain.kernels <= most[0]
    assert refreshing.kernels <= most[1]
    assert plain.moved_bytes <= moved * count


@pytest.mark.parametrize("name", models.TRAININGS)
def test_the_cost_model_counts_the_launches_that_there_are(name: str, as_on_cuda: None) -> None:
    """And what it predicts is within two points of an iteration of the record, whose blocks were of 128."""
    training = models.TRAININGS[name]
    with torch.device("meta"):
        model, sample = training.shape()
    grafting = "sgd" if training.baseline == "sgd" else "adam"
    cost = estimate(model, sample_input=sample, gpu=True, grafting=grafting, weight_decay=1e-2)
    counted = [meter.launches for meter in _meters(name, block_size=256)[0]]
    assert [cost.launches.plain, cost.launches.refresh] == pytest.approx(counted, rel=0.02)  # of another memory format
    earlier = estimate(model, sample_input=sample, gpu=True, grafting=grafting, block_size=128)
    found = json.loads((ROOT / "lab" / "records" / "gpu.json").read_text())[f"iteration, {name}"]
    (seen,) = (row["to_baseline"] for row in found if row["optimizer"] == "jorge")
    assert earlier.overhead == pytest.approx(seen - 1, abs=0.02)
