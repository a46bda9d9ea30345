"""What dry steps are taken on, and with whom: a copy of a model, or itself, which is then given back as it was.

Torch copies no model of FSDP2's. Of one with sharded parameters only the optimizer is copied, and what the steps change
of the model is written back: weights, buffers and gradients.
"""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from jorge.exchange.domains import Distribution, is_sharded, local
from jorge.exchange.transport import Transport


def transport_of(model: nn.Module) -> Transport | None:
    """To the processes that train a model together: those of its largest mesh, or of DistributedDataParallel.

    `None` where it is neither sharded nor wrapped.
    """
    distribution = Distribution()
    found = [distribution.of_mesh(p) for p in model.parameters() if is_sharded(p)]
    found += [Transport(m.process_group) for m in model.modules() if isinstance(m, DistributedDataParallel)]
    return max(found, key=lambda transport: transport.size, default=None)


def treated(
    model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    """Copies of a model and of its optimizer; a model with sharded parameters is itself.

    Raises:
        Exception: whatever a module that cannot be copied raises.
    """
    if not any(map(is_sharded, model.parameters())):
        return copy.deepcopy((model, optimizer))
    return model, copy.deepcopy(optimizer, {id(p): p for p in model.parameters()})


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Give a model its weights, gradients and buffers back, to the bit.

    Without sharded parameters steps are taken on a copy, but the loss may be computed with the model: it has its
    gradients and buffers back.
    """
    in_place = any(map(is_sharded, model.parameters()))
    weights = {p: local(p).detach().clone() for p in model.parameters()} if in_place else {}
    grads = {p: (p.grad, None if p.grad is None else local(p.grad).clone()) for p in model.parameters()}
    buffers = [
        (module, name, buffer, local(buffer).clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    if in_place:
        for p in grads:
            p.grad = None
    try:
        yield
    finally:
        _reshard(model)
        with torch.no_grad():
            for p, weight in weights.items():
                _write(local(p), weight)
            for p, (grad, value) in grads.items():
                p.grad = grad
                if grad is not None and value is not None:
                    _write(local(grad), value)
            for module, name, buffer, value in buffers:
                if getattr(module, name) is not buffer:
                    setattr(module, name, buffer)
                _write(local(buffer), value)


def _write(tensor: Tensor, value: Tensor) -> None:
    if tensor.is_sparse or not torch.equal(tensor, value):
        tensor.copy_(value)


def _reshard(model: nn.Module) -> None:
    """Let FSDP2 free what it has gathered: a backward pass does, and a loss that cannot be differentiated has none."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    for module in model.modules() if fsdp is not None else ():
        if isinstance(module, fsdp.FSDPModule):
            module.reshard()


@contextmanager
def random_numbers_kept(model: nn.Module) -> Iterator[None]:
    """Give generators of random numbers their state back: torch's, the model's devices', Python's and numpy's."""
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    numpy = sys.modules.get("numpy")
    python, arrays = random.getstate(), numpy.random.get_state() if numpy else None
    with torch.random.fork_rng(devices=sorted(d.index for d in devices if d.index is not None)):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy:
                numpy.random.set_state(arrays)
