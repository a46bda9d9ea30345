"""A user's own task: any importable `module:function` that returns what is trained (docs/guide/own-tasks.md)."""

from __future__ import annotations

import importlib
import inspect
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from jorge.errors import said
from jorge_lab.tasks.own_data import TaskError, read
from jorge_lab.tasks.task import Batch, DataMissingError, FirstOrder, Size, Task

__all__ = ["TaskError", "from_parts", "load"]

_FIELDS = ("model", "data", "loss", "metric")
_RECIPE = {"baseline", "sgd", "adamw", "schedule", "warmup"}
_OPTIONAL = _RECIPE | {"steps", "batch_size", "title", "origin", "why"}
_STEPS, _BATCH = 400, 64


def load(spec: str, size: Size) -> Task:
    """The task that `module:function` returns; modules are looked for in the working directory, too.

    The function is given `size` if it takes an argument of that name. It returns a
    :class:`~jorge_lab.tasks.task.Task`, a mapping with `model`, `data`, `loss`, `metric` and what :func:`from_parts`
    takes beside them, or those four in a tuple.

    Raises:
        TaskError: it cannot be imported or called, or returns something else.
        DataMissingError: the function says so.
    """
    function = _find(spec)
    arguments = {"size": size} if "size" in inspect.signature(function).parameters else {}

    def call() -> Any:
        return function(**arguments)

    try:
        with _same_random_numbers():
            found = call()
    except DataMissingError:
        raise
    except Exception as error:
        raise TaskError(f"{spec} raised {said(error)}") from error
    if isinstance(found, Task):
        return found
    parts = _parts(spec, found)
    model = parts["model"]
    if isinstance(model, nn.Module):  # called again for each run, so that weights are drawn anew by its seed

        def build() -> nn.Module:
            fresh: nn.Module = _parts(spec, call())["model"]
            return fresh

        parts["model"] = build
    task = from_parts(spec, size, **parts)
    try:
        networks = [task.model(), task.model()]
    except Exception as error:
        raise TaskError(f"the model of {spec} cannot be built: {said(error)}") from error
    if {id(p) for p in networks[0].parameters()} & {id(p) for p in networks[1].parameters()}:
        raise TaskError(f"{spec} returns the same network each time, which runs would share: build it in the function")
    return task


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """What is drawn inside is the same each time and in each process: the data of all runs must be."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _find(spec: str) -> Callable[..., Any]:
    module, _, name = spec.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        function: Any = importlib.import_module(module)
        for part in name.split("."):
            function = getattr(function, part)
    except Exception as error:  # a module may raise anything when it is imported
        raise TaskError(f"cannot import the task {spec!r}: {said(error)}") from error
    if not callable(function):
        raise TaskError(f"{spec} is {type(function).__name__}: write module:function of a function that can be called")
    return function  # type: ignore[no-any-return]


def _parts(spec: str, found: Any) -> dict[str, Any]:
    if isinstance(found, Mapping):
        parts = dict(found)
    elif isinstance(found, Sequence) and len(found) == len(_FIELDS):
        parts = dict(zip(_FIELDS, found, strict=True))
    else:
        raise TaskError(f"{spec} must return a mapping or a tuple of {', '.join(_FIELDS)}, not {type(found).__name__}")
    missing = [name for name in ("model", "data", "loss") if name not in parts]
    unknown = sorted(set(parts) - {*_FIELDS, *_OPTIONAL})
    if missing or unknown:
        wrong = [f"lacks {', '.join(missing)}"] if missing else []
        wrong += [f"has unknown entries {', '.join(unknown)}: there are {', '.join(sorted(_OPTIONAL))}"] * bool(unknown)
        raise TaskError(f"what {spec} returns {' and '.join(wrong)}")
    return parts


def from_parts(
    name: str,
    size: Size,
    *,
    model: Callable[[], nn.Module],
    data: Any,
    loss: Callable[..., Tensor],
    metric: Any = None,
    steps: int = _STEPS,
    batch_size: int | None = None,
    title: str | None = None,
    origin: str = "the user's own",
    why: str = "The user's own.",
    baseline: Literal["sgd", "adamw"] | None = None,
    sgd: Mapping[str, Any] | None = None,
    adamw: Mapping[str, Any] | None = None,
    schedule: Any = "cosine",
    warmup: float = 0.0,
) -> Task:
    """A task from its parts.

    Args:
        name: its name in tables.
        size: which of its sizes this is.
        model: builds the model.
        data: training and validation examples, a pair, in one of the forms of :func:`jorge_lab.tasks.own_data.read`.
        loss: `loss(model, batch)`, or, if its first parameter is not called `model`, a criterion
            `loss(output, target)` of batches `(input, target)`; the mean over a batch. Where examples are mappings, so
            are batches.
        metric: a function as `loss` of which higher is better, or `(name, function, "higher" or "lower")`; the mean
            over a batch. Default: the loss on the validation data.
        steps: optimizer steps. Default 400.
        batch_size: examples a step. Default: the loader's, or 64.
        title: a line for reports.
        origin: of the data, and its licence.
        why: why it is compared on.
        baseline: whose loss is the target. Default `"sgd"` if only `sgd` is given, else `"adamw"`.
        sgd: options of `torch.optim.SGD`. Default lr 0.1, momentum 0.9.
        adamw: options of `torch.optim.AdamW`. Default lr 1e-3.
        schedule: `"step"`, `"cosine"` or `"keep"`, for all optimizers.
        warmup: share of the steps.

    Raises:
        TaskError: the data is of no such kind.
    """
    if baseline not in (None, "sgd", "adamw"):
        raise TaskError(f"{name}: baseline must be 'sgd' or 'adamw', got {baseline!r}")
    found = read(name, data)
    objective = _on_batches(loss, found.names)
    metric_name, score, better = _metric(metric, objective, found.names)
    choice = baseline or ("sgd" if sgd is not None and adamw is None else "adamw")
    recipe = FirstOrder(
        baseline=choice,
        sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.0, **(sgd or {})},
        adamw={"lr": 1e-3, "weight_decay": 0.0, **(adamw or {})},
        schedule=schedule,
        warmup=warmup,
        transfer="sgd" if choice == "sgd" and adamw is None else "adamw",
    )

    def summed(network: nn.Module, batch: Batch) -> Tensor:
        return torch.as_tensor(score(network, batch)) * len(batch[0])

    return Task(
        name=name,
        title=title or name,
        origin=origin,
        why=why,
        size=size,
        recipe=recipe,
        steps=steps,
        batch_size=batch_size or found.batch_size or _BATCH,
        metric=(metric_name, better),
        load=lambda: found.data,
        model=model,
        loss=objective,
        score=summed,
    )


def _on_batches(function: Callable[..., Tensor], names: tuple[str, ...] | None) -> Callable[[nn.Module, Batch], Tensor]:
    """`function(model, batch)`, whichever of the two kinds it is; it is given mappings where there are `names`."""
    try:
        first = next(iter(inspect.signature(function).parameters), "")
    except (ValueError, TypeError):  # what is built in has no signature
        first = ""
    if names is not None:
        if first != "model":
            raise TaskError(
                f"the examples are mappings of {', '.join(names)}, which a criterion of (output, target) cannot take: "
                "write a function of (model, batch); its first parameter must be called `model`"
            )
        return lambda model, batch: function(model, dict(zip(names, batch, strict=True)))
    if first == "model":
        return function

    def criterion(model: nn.Module, batch: Batch) -> Tensor:
        *inputs, target = batch
        output = model(*inputs)
        try:
            return function(output, target)
        except (TypeError, AttributeError) as error:
            called = getattr(function, "__name__", type(function).__name__)
            raise TaskError(
                f"{called} was called with (output, target) and failed: {error}. To be called with (model, batch), its "
                "first parameter must be called `model`"
            ) from error

    return criterion


def _metric(
    metric: Any, loss: Callable[..., Tensor], names: tuple[str, ...] | None
) -> tuple[str, Callable[..., Any], Literal["higher", "lower"]]:
    if metric is None:
        return "validation loss", loss, "lower"
    if callable(metric):
        return (
            getattr(metric, "__name__", type(metric).__name__).replace("_", " "),
            _on_batches(metric, names),
            "higher",
        )
    if isinstance(metric, Sequence) and len(metric) == 3 and callable(metric[1]) and metric[2] in ("higher", "lower"):
        return str(metric[0]), _on_batches(metric[1], names), metric[2]
    raise TaskError(f"metric must be a function or (name, function, 'higher' or 'lower'), got {metric!r}")
