"""The studies that are scripts: what they find, on few refreshes and steps."""

import pytest
import torch

from jorge_lab.studies import kl_shampoo, precision, sgd_lengths, sparse_refreshes
from jorge_lab.tasks import TASKS
from lab.tests.tiny import tiny


def test_whitening_comes_to_kl_shampoo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_shampoo, "SHAPE", (12, 16))
    monkeypatch.setattr(kl_shampoo, "REFRESHES", (10, 40, 120))
    first, second, last = kl_shampoo.compare(1e3, 1e-4)
    assert (first.refreshes, second.refreshes, last.refreshes) == (10, 40, 120)
    assert first.error > second.error > last.error > 0
    assert last.error < 0.03
    assert min(last.direction, last.published) > 0.99 > first.direction > first.published
    assert min(last.truth, last.oracle_truth) > 0.95


def test_whitening_needs_the_damping_that_its_oracle_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl_shampoo, "REFRESHES", (300,))
    (without,), (damped,) = kl_shampoo.compare(1e6, 0.0), kl_shampoo.compare(1e6, 1e-4)
    assert without.oracle_truth > 0.95 > damped.truth > without.truth
    assert without.direction < 0.5
    assert damped.direction > 0.99


def test_its_table_has_a_row_for_each(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kl_shampoo, "CONDITIONS", (1e1, 1e2))
    monkeypatch.setattr(kl_shampoo, "REFRESHES", (1, 2))
    monkeypatch.setattr("sys.argv", ["kl_shampoo", "--damping", "1e-3"])
    kl_shampoo.main()
    rows = [line.split("|")[1:3] for line in capsys.readouterr().out.splitlines() if line.startswith("| 1e")]
    assert [[cell.strip() for cell in row] for row in rows] == [[c, k] for c in ("1e+01", "1e+02") for k in "12"]


def test_a_task_in_float64() -> None:
    task = sgd_lengths.widened(TASKS["mnist1d-mlp"]("smoke"), torch.float64)
    model, batch = task.model(), next(task.batches(task.load(), 0))
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert [each.dtype for each in batch] == [torch.float64, torch.int64]
    assert task.loss(model, batch).dtype == torch.float64


def test_who_diverges_at_sgds_lengths(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wild = "shampoo:grafting=sgd:lr=1e6:graft_limit=None"
    variants = (("wild", wild, torch.float64), ("tame", "shampoo:grafting=sgd:lr=0.1", torch.float32))
    monkeypatch.setattr(sgd_lengths, "VARIANTS", variants)
    monkeypatch.setattr("sys.argv", ["sgd_lengths", "--seeds", "1", "--size", "smoke"])
    sgd_lengths.main()
    wild, tame = (line.split("|")[2].strip() for line in capsys.readouterr().out.splitlines()[-2:])
    assert wild.startswith("diverged at step ")
    assert 0 < float(tame) < 2.4


def test_what_precision_costs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(precision, "SHAPE", (8, 6))
    monkeypatch.setattr(precision, "REFRESHES", 6)
    precision.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if "e+0" in line]
    errors = {tuple(cell.strip() for cell in row[1:4]): float(row[4]) for row in rows}
    assert len(errors) == 45
    for method in ("whitening", "congruence", "binomial"):
        exact, tf32, bfloat16, _, scaled = (errors[method, "1e+01", name] for name in precision.PRECISIONS)
        assert 0 < exact < tf32 < bfloat16 < 0.1
        assert tf32 / 2 < scaled < 2 * tf32  # both keep 11 bits


def test_unscaled_float16_loses_small_gradients() -> None:
    grad = torch.full((1, 2, 2), 1e-9)
    with precision.Float16Products(scaled=False):
        assert not torch.bmm(grad, grad.mT).any()
        assert torch.equal(torch.baddbmm(grad, torch.eye(2)[None], grad, beta=2.0), 2 * grad)
    with precision.Float16Products(scaled=True):
        assert torch.bmm(grad, grad.mT)[0, 0, 0].item() == pytest.approx(2e-18, rel=1e-3)
        assert not torch.bmm(torch.zeros_like(grad), grad).any()


def test_refreshes_that_make_up_for_steps_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sparse_refreshes, "TASKS", {"mine": lambda size: tiny()})
    monkeypatch.setattr("sys.argv", ["sparse_refreshes", "mine", "--seeds", "1", "--steps", "30"])
    sparse_refreshes.main()
    row = capsys.readouterr().out.splitlines()[-1].strip("| ").split("|")
    assert row[0].strip() == "0"
    losses = [float(cell.split(",")[1]) for cell in row[1:]]
    assert len(losses) == len(sparse_refreshes.VARIANTS)
    assert len(set(losses)) > 1
