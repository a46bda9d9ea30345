"""A user's own task: any importable `module:function` that returns model, data, loss and metric (docs/own-tasks.md)."""

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
from torch.utils.data import DataLoader, Dataset, default_collate

from jorge.lab.errors import LabError
from jorge.lab.task import Batch, Data, FirstOrder, Size, Task

_FIELDS = ("model", "data", "loss", "metric")
_RECIPE = {"baseline", "sgd", "adamw", "schedule", "warmup"}
_OPTIONAL = _RECIPE | {"steps", "batch_size", "title", "origin", "why"}
_STEPS, _BATCH = 400, 64


class TaskError(LabError):
    """A user's task cannot be used; the message says what is wrong with it and what to do."""


def load(spec: str, size: Size) -> Task:
    """The task that `module:function` returns; modules are looked for in the working directory, too.

    The function is given `size` if it takes an argument of that name. It returns a :class:`~jorge.lab.task.Task`, a
    mapping with `model`, `data`, `loss`, `metric` and what :func:`from_parts` takes beside them, or those four in a
    tuple.

    Raises:
        TaskError: it cannot be imported or called, or returns something else.
    """
    function = _find(spec)
    arguments = {"size": size} if "size" in inspect.signature(function).parameters else {}

    def call() -> Any:
        return function(**arguments)

    try:
        with _same_random_numbers():
            found = call()
    except Exception as error:
        raise TaskError(f"{spec} raised {type(error).__name__}: {error}") from error
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
    networks = [task.model(), task.model()]
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
        raise TaskError(f"cannot import the task {spec!r}: {type(error).__name__}: {error}") from error
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
        said = [f"lacks {', '.join(missing)}"] if missing else []
        said += [f"has unknown entries {', '.join(unknown)}: there are {', '.join(sorted(_OPTIONAL))}"] * bool(unknown)
        raise TaskError(f"what {spec} returns {' and '.join(said)}")
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
        data: training and validation examples, a pair; each a tuple of tensors whose first dim counts examples, a map
            dataset, or a data loader of one, of which the dataset, the collation and the batch size are taken.
        loss: `loss(model, batch)`, or, if its first parameter is not called `model`, a criterion
            `loss(output, target)` of batches `(input, target)`; the mean over a batch.
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
    found, loaded = _data(name, data)
    objective = _on_batches(loss)
    metric_name, score, better = _metric(metric, objective)
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
        batch_size=batch_size or loaded or _BATCH,
        metric=(metric_name, better),
        load=lambda: found,
        model=model,
        loss=objective,
        score=summed,
    )


def _on_batches(function: Callable[..., Tensor]) -> Callable[[nn.Module, Batch], Tensor]:
    """`function(model, batch)`, whichever of the two kinds it is."""
    try:
        first = next(iter(inspect.signature(function).parameters), "")
    except (ValueError, TypeError):  # what is built in has no signature
        first = ""
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


def _metric(metric: Any, loss: Callable[..., Tensor]) -> tuple[str, Callable[..., Any], Literal["higher", "lower"]]:
    if metric is None:
        return "validation loss", loss, "lower"
    if callable(metric):
        return getattr(metric, "__name__", type(metric).__name__).replace("_", " "), _on_batches(metric), "higher"
    if isinstance(metric, Sequence) and len(metric) == 3 and callable(metric[1]) and metric[2] in ("higher", "lower"):
        return str(metric[0]), _on_batches(metric[1]), metric[2]
    raise TaskError(f"metric must be a function or (name, function, 'higher' or 'lower'), got {metric!r}")


def _data(name: str, data: Any) -> tuple[Data, int | None]:
    """The data as tensors, and the batch size of a loader."""
    if isinstance(data, Data):
        return data, None
    if not isinstance(data, Sequence) or len(data) != 2:
        raise TaskError(f"{name}: data must be a pair, training and validation examples, got {type(data).__name__}")
    train, validation = (_tensors(name, part) for part in data)
    if not len(train[0]) or not len(validation[0]):
        raise TaskError(f"{name}: {len(train[0])} training and {len(validation[0])} validation examples are too few")
    batch_size = data[0].batch_size if isinstance(data[0], DataLoader) else None
    return Data(train, validation), batch_size


def _tensors(name: str, part: Any) -> Batch:
    if isinstance(part, Tensor):
        part = (part,)
    if isinstance(part, Sequence) and part and all(isinstance(t, Tensor) for t in part):
        if len({len(t) for t in part}) != 1:
            raise TaskError(f"{name}: tensors of {', '.join(str(len(t)) for t in part)} examples do not go together")
        return tuple(part)
    collate = default_collate
    if isinstance(part, DataLoader):
        part, collate = part.dataset, part.collate_fn or default_collate
    if not isinstance(part, Dataset) or not hasattr(part, "__len__"):
        raise TaskError(
            f"{name}: examples must be tensors, a dataset with a length, or a loader of one, got {type(part).__name__}"
        )
    batch = collate([part[i] for i in range(len(part))])
    batch = (batch,) if isinstance(batch, Tensor) else batch
    if not isinstance(batch, Sequence) or not all(isinstance(t, Tensor) for t in batch):
        raise TaskError(f"{name}: an example must be a tensor or a tuple of tensors and numbers")
    return tuple(batch)
