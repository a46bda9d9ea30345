"""The studies that are scripts: what they find, on few refreshes and steps."""

import pytest
import torch

import jorge.step
from jorge_lab.studies import kl_shampoo, lengths, precision, sgd_lengths, sparse_refreshes
from jorge_lab.tasks import TASKS
from lab.tests.tiny import Tokens, tiny


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


def seen_of(signs: list[float], sizes: list[float]) -> lengths.Seen:
    """Directions of a shape group, along one matrix with a bit of noise, with a sign and a length at each step."""
    generator = torch.Generator().manual_seed(0)
    ahead, seen = torch.randn(1, 6, 4, generator=generator), lengths.Seen()
    for sign, size in zip(signs, sizes, strict=True):
        noise = torch.randn(1, 6, 4, generator=generator)
        seen.take(size * (sign * ahead + 0.1 * noise), linear=True)
    return seen


def test_whether_long_directions_agree_with_the_others() -> None:
    """Here every third is long, and is against the rest, or not; and all become a hundredth as long."""
    shrink = [10 ** (-2 * i / 299) for i in range(300)]
    long = [3.0 if i % 3 == 0 else 1.0 for i in range(300)]
    sizes = [a * b for a, b in zip(shrink, long, strict=True)]
    against = lengths.row([seen_of([-1.0 if i % 3 == 0 else 1.0 for i in range(300)], sizes)])
    falls, varies, agrees, gain, _ = lengths.row([seen_of([1.0] * 300, sizes)])
    assert falls == pytest.approx(1.8, abs=0.05)  # from the middle of the first tenth to that of the last
    assert varies == pytest.approx(0.22, abs=0.05)
    assert agrees > 0.95
    assert gain == pytest.approx(0, abs=0.01)
    assert against[3] < -1


def test_whether_large_rows_are_noise() -> None:
    """Half of the rows are the same at all steps, and five times as large as the other half, which is noise."""
    generator, seen = torch.Generator().manual_seed(0), lengths.Seen()
    steady = 5 * torch.randn(1, 4, 6, generator=generator)
    for _ in range(100):
        seen.take(torch.cat([steady, torch.randn(1, 4, 6, generator=generator)], 1), linear=True)
    assert lengths.row([seen])[4] > 0.8


def test_lengths_of_a_training(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    before = jorge.step._momentum
    seen, loss = lengths.watch(tiny(Tokens, steps=60), 0)
    assert jorge.step._momentum is before
    assert loss < 3
    assert len(seen) > 1
    falls, varies, agrees, gain, rows = lengths.row(seen)
    assert varies > 0
    assert -1 < gain < 1
    assert -1 < agrees < 1
    assert -1 <= rows <= 1
    assert -3 < falls < 3
    lengths.main(["mnist1d-mlp", "--size", "smoke"])
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("| `mnist1d-mlp` | ")
    assert last.count("|") == 7


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
