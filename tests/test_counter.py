"""The one counter of what torch dispatches."""

import pytest
import torch

from jorge.cost.counter import Meter


def test_what_is_counted() -> None:
    a, b = torch.ones(4, 8), torch.ones(8, 3)
    meter = Meter()
    with meter:
        torch.empty(5), torch.empty_like(a), a.view(8, 4), a.mT
    assert (meter.total, meter.launches, meter.moved_bytes) == (4, 0, 0)
    with meter:
        a @ b
    assert (meter.launches, meter.flops, meter.moved_bytes) == (1, 2 * 4 * 8 * 3, 0)
    with meter:
        a.add_(a)
    assert meter.moved_bytes == 2 * 4 * 32  # given twice, read once
    with meter:
        a.fill_(1.0)
    assert meter.moved_bytes == 3 * 4 * 32  # written and not read
    with meter:
        a.expand(1000, 4, 8).sum()
    assert meter.moved_bytes == 4 * 4 * 32 + 4  # what is expanded lies in memory once
    assert meter.waits == 0


def test_the_marks_of_a_step_are_no_launches() -> None:
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = torch.optim.SGD([p], lr=0.1, foreach=True)
    optimizer.step()
    meter = Meter()
    with meter:
        optimizer.step()
    assert meter.launches == 1
    assert meter.total > 1


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.item(),
        lambda x: bool(x.isfinite()),
        lambda x: torch.equal(x, x),
        lambda x: x.view(1).nonzero(),
        lambda x: torch.linalg.eigh(x.view(1, 1)),
        lambda x: x.view(1)[x.view(1) > 0],
    ],
)
def test_what_the_host_waits_for(wait: object) -> None:
    assert callable(wait)
    meter, elsewhere = Meter(), Meter(torch.device("cuda"))
    with meter, elsewhere:
        wait(torch.ones(()))
    assert meter.waits >= 1
    assert elsewhere.waits == 0
