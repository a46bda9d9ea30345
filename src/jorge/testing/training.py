"""Checks of what a step does to weights."""

from __future__ import annotations

import torch
from torch import nn

from jorge.testing.check import Factory, NotApplicable, declare, expect
from jorge.testing.kit import (
    advance,
    descend,
    expect_moved,
    expect_unmoved,
    give_gradients,
    parameters,
    quadratic,
    set_lr,
    shapes_of,
    start,
    values,
)

_training = "training"


@declare(_training, "The loss of a least-squares problem falls.")
def least_squares(factory: Factory) -> None:
    params, optimizer = start(factory)
    before, after = descend(optimizer, params, 20)
    expect(after < before, f"the loss went from {before:.4g} to {after:.4g} in 20 steps")


@declare(_training, "The loss of a small network falls.")
def network(factory: Factory) -> None:
    bias = any(len(shape) == 1 for shape in shapes_of(factory))
    model = nn.Sequential(nn.Linear(5, 8, bias), nn.Tanh(), nn.Linear(8, 3, bias))
    optimizer = factory(list(model.parameters()))
    inputs, targets = torch.randn(32, 5), torch.randn(32, 3)
    losses = []
    for _ in range(40):
        loss = (model(inputs) - targets).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    expect(losses[-1] < losses[0], f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g} in 40 steps")


@declare(_training, "A learning rate of 0 leaves the weights as they are.")
def zero_lr(factory: Factory) -> None:
    params, optimizer = start(factory)
    set_lr(optimizer, 0.0)
    before = values(params)
    advance(optimizer, params)
    expect_unmoved(before, params, "at lr=0")


@declare(_training, "A weight without a gradient is left alone, and trains once it has one.")
def missing_gradient(factory: Factory) -> None:
    params, optimizer = start(factory)
    before = values(params)
    advance(optimizer, params[1:])
    expect_unmoved(before[:1], params[:1], "without a gradient")
    expect_moved(before[1:], params[1:], "beside one without a gradient")
    advance(optimizer, params)
    expect_moved(before[:1], params[:1], "once it had a gradient")
    kept = values(params)
    params[0].grad = None
    advance(optimizer, params[1:])
    expect_unmoved(kept[:1], params[:1], "without a gradient, after it had some")


@declare(_training, "A step without any gradient changes nothing.")
def no_gradients(factory: Factory) -> None:
    params, optimizer = start(factory)
    before = values(params)
    optimizer.step()
    expect_unmoved(before, params, "without any gradient")
    advance(optimizer, params)
    expect_moved(before, params, "after a step without any gradient")


@declare(_training, "A weight that was frozen when the optimizer was built trains once it is unfrozen.")
def frozen(factory: Factory) -> None:
    params = parameters(shapes_of(factory))
    params[0].requires_grad_(False)
    optimizer = factory(params)
    before = values(params)
    descend(optimizer, params, 3)
    expect_unmoved(before[:1], params[:1], "while frozen")
    params[0].requires_grad_(True)
    descend(optimizer, params, 3)
    expect_moved(before, params, "once unfrozen")


@declare(_training, "A weight that is frozen in the middle of training stays where it is.")
def freezing(factory: Factory) -> None:
    params, optimizer = start(factory)
    descend(optimizer, params, 3)
    params[0].requires_grad_(False)
    params[0].grad = None
    before = values(params)
    descend(optimizer, params, 3)
    expect_unmoved(before[:1], params[:1], "after it was frozen")
    expect_moved(before[1:], params[1:], "beside a frozen one")


@declare(_training, "A step leaves gradients as they are.")
def gradients_kept(factory: Factory) -> None:
    params, optimizer = start(factory)
    generator = torch.Generator().manual_seed(2)
    for _ in range(3):
        give_gradients(params, generator)
        given = [p.grad for p in params]
        before = values([g for g in given if g is not None])
        optimizer.step()
        for p, g, old in zip(params, given, before, strict=True):
            expect(p.grad is g, "after a step `grad` is another object, or None")
            expect(g is not None and torch.equal(g, old), "a step changes the values of gradients")


@declare(_training, "`zero_grad` removes gradients, or sets them to zero where asked to.")
def zero_grad(factory: Factory) -> None:
    params, optimizer = start(factory)
    advance(optimizer, params)
    give_gradients(params, torch.Generator().manual_seed(2))
    optimizer.zero_grad(set_to_none=False)
    expect(all(p.grad is not None and not p.grad.any() for p in params), "a gradient is not zero")
    optimizer.step()
    optimizer.zero_grad()
    expect(all(p.grad is None for p in params), "a gradient is left")
    before = values(params)
    advance(optimizer, params)
    expect_moved(before, params, "after `zero_grad`")


@declare(_training, "A closure runs with gradients enabled, and `step` returns its loss.")
def closure(factory: Factory) -> None:
    params, optimizer = start(factory)
    losses: list[float] = []

    def evaluate() -> float:
        expect(torch.is_grad_enabled(), "the closure runs with gradients disabled")
        optimizer.zero_grad()
        loss = quadratic(params)
        loss.backward()  # type: ignore[no-untyped-call]
        losses.append(float(loss.detach()))
        return loss  # type: ignore[return-value]

    before = values(params)
    for _ in range(3):
        losses.clear()
        returned = optimizer.step(evaluate)
        expect(len(losses) > 0, "`step` does not call the closure")
        expect(returned is not None, "`step` does not return what the closure does")
        expect(float(returned) == losses[0], f"`step` returns {returned}, the closure {losses[0]}")
    expect_moved(before, params, "with a closure")
    expect(torch.is_grad_enabled(), "gradients are disabled after a step")


@declare(_training, "With `maximize` the loss rises.")
def maximize(factory: Factory) -> None:
    params, optimizer = start(factory)
    if "maximize" not in optimizer.param_groups[0]:
        raise NotApplicable("its groups have no `maximize`")
    optimizer = factory([{"params": params, "maximize": True}])
    set_weight_decay(optimizer, 0.0)
    before, after = descend(optimizer, params, 10)
    expect(after > before, f"the value went from {before:.4g} to {after:.4g} in 10 steps")


def set_weight_decay(optimizer: torch.optim.Optimizer, value: float) -> None:
    """Set the weight decay of groups that have one."""
    for group in optimizer.param_groups:
        if "weight_decay" in group:
            group["weight_decay"] = value


@declare(_training, "Tied weights train as one.")
def tied_weights(factory: Factory) -> None:
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False))
    model[1].weight = model[0].weight
    optimizer = factory(list(model.parameters()))
    tokens = torch.arange(9)
    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(tokens), tokens)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    expect(model[1].weight is model[0].weight, "the weights are no longer the same object")
    expect(losses[-1] < losses[0], f"the loss went from {losses[0]:.4g} to {losses[-1]:.4g} in 40 steps")


@declare(_training, "After a step weights are leaves that require gradients, and the state is without history.")
def leaves(factory: Factory) -> None:
    params, optimizer = start(factory)
    descend(optimizer, params, 3)
    expect(all(p.is_leaf and p.requires_grad for p in params), "a weight is no leaf, or needs no gradient")
    kept = [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    expect(not any(v.requires_grad for v in kept), "a tensor of the state requires gradients")


@declare(_training, "Autograd knows that a step changed the weights: `backward` after it is refused.")
def autograd_notices(factory: Factory) -> None:
    params, optimizer = start(factory)
    loss = quadratic(params)
    versions = [p._version for p in params]
    advance(optimizer, params)
    del loss
    expect(
        all(p._version > old for p, old in zip(params, versions, strict=True)),
        "weights change without a change of their version, and `backward` through old ones is silently wrong",
    )


CHECKS = (
    least_squares,
    network,
    zero_lr,
    missing_gradient,
    no_gradients,
    frozen,
    freezing,
    gradients_kept,
    zero_grad,
    closure,
    maximize,
    tied_weights,
    leaves,
    autograd_notices,
)
