"""Checks that training can be repeated, and of what a step reads and draws."""

from __future__ import annotations

import random

import torch
from torch import nn

from jorge.testing.check import BEYOND, Factory, declare, expect
from jorge.testing.kit import advance, expect_alike, give_gradients, parameters, shapes_of, start

_repeatable = "repeatable"


@declare(_repeatable, "The same steps lead to the same weights, to the bit.")
def repeated(factory: Factory) -> None:
    runs = []
    for _ in range(2):
        params, optimizer = start(factory)
        advance(optimizer, params, 12)
        runs.append(params)
    expect_alike(runs[0], runs[1], "the same steps lead elsewhere")


@declare(BEYOND, "A step draws no numbers from torch's or Python's global generators.")
def no_draws(factory: Factory) -> None:
    params, optimizer = start(factory)
    generator = torch.Generator().manual_seed(2)
    for _ in range(12):
        give_gradients(params, generator)
        before = torch.get_rng_state(), random.getstate()
        optimizer.step()
        expect(torch.equal(before[0], torch.get_rng_state()), "a step draws from torch's global generator")
        expect(before[1] == random.getstate(), "a step draws from Python's global generator")


@declare(BEYOND, "A step reads nothing back from the device. (It runs on `meta`, which has no values to read.)")
def no_waiting(factory: Factory) -> None:
    params = [nn.Parameter(p.detach().to("meta")) for p in parameters(shapes_of(factory))]
    optimizer = factory(params)
    for _ in range(12):
        for p in params:
            p.grad = torch.empty_like(p)
        optimizer.step()


CHECKS = (repeated, no_draws, no_waiting)
