"""What may be wrong with a training: one function for each thing that the doctor looks at (:mod:`jorge.checkup`).

Of sharded parameters it looks at whole gradients and weights, one at a time, for which all processes have to ask.
"""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from jorge.diagnostics import Diagnostics, least_gradient
from jorge.exchange.checkpoints import whole
from jorge.groups import param_groups
from jorge.optimizer import Jorge
from jorge.options import DEFAULTS, Options
from jorge.routing import COMPUTE_DTYPES, layout
from jorge.skips import Skips
from jorge.validation import some

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
#: A step that moves a weight by more of its norm than this is a learning rate of another optimizer.
_LONG = 0.3
#: The share of a weight's elements that steps change, at least.
_CHANGED = 0.1
#: An embedding of so many rows is told where it is preconditioned as a matrix.
_LARGE_TABLE = 1024
#: A weight that starts below this, root mean square, starts at zero: any step is long beside it.
_AT_ZERO = 1e-3
#: An eps above this hides gradients before float32 does.
_UNDERFLOW = math.sqrt(torch.finfo(torch.float32).tiny)
#: Gradients that are longer have squares that overflow, by the dtype of the arithmetic.
_LONGEST = {given: math.sqrt(torch.finfo(kept).max) for given, kept in COMPUTE_DTYPES.items()}
#: Learning rates that are unusual for a step of Adam's length, above, and of SGD's, below.
_HIGH_FOR_ADAM, _LOW_FOR_SGD = 0.03, 0.003
#: By the step's length, options of the other one.
_OF_LENGTH = {
    "adam": ("graft_limit",),
    "sgd": ("betas", "eps", "beta2_decay", "graft_memory", "graft_norm", "adapt_variance"),
}


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do.

    Args:
        level: `"error"`: it will not train as meant; `"warning"`: probably not; `"note"`: so you know.
        what: was found.
        remedy: what to do.
    """

    level: Level
    what: str
    remedy: str

    def __str__(self) -> str:
        return textwrap.fill(f"{self.level}: {self.what}. {self.remedy}", 100, subsequent_indent="    ")


def of_unmade(model: nn.Module) -> Finding | None:
    """Lazy modules that have not seen a batch, which cannot be copied; `None` where there are none."""
    named = [*model.named_parameters(), *model.named_buffers()]
    names = [name for name, tensor in named if nn.parameter.is_lazy(tensor)]
    if not names:
        return None
    return Finding("error", f"no shape yet has {some(names)}", "Run the model on one batch first.")


def of_loss(value: Any) -> Finding | None:
    """What is wrong with a loss; `None` where nothing is."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        got = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
        return Finding("error", f"the loss is no scalar tensor but {got}", "Take its mean, or return the loss alone.")
    if not value.requires_grad:
        return Finding(
            "error", "the loss does not depend on the model's parameters", "Is it detached, or computed by no_grad?"
        )
    if not bool(value.detach().isfinite()):
        return Finding("error", f"the loss is {float(value.detach())}", "Look at the batch, and at the precision.")
    return None


def of_model(model: nn.Module, trained: dict[str, nn.Parameter]) -> Iterator[Finding]:
    """Of the model alone: its mode, tied weights, float16."""
    if not model.training:
        yield Finding("warning", "the model is in evaluation mode", "Call model.train() before training.")
    names: dict[nn.Parameter, list[str]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        names.setdefault(p, []).append(name)
    for shared in (each for each in names.values() if len(each) > 1):
        yield Finding("note", f"{' and '.join(shared)} are one parameter", "It is stepped once, with both gradients.")
    half = [name for name, p in trained.items() if p.dtype == torch.float16]
    if half:
        yield Finding(
            "warning",
            f"{some(half)} {'is' if len(half) == 1 else 'are'} float16",
            "Train float32 or bfloat16 weights, and let autocast and a gradient scaler have float16.",
        )


def of_membership(
    model: nn.Module, trained: dict[str, nn.Parameter], optimizer: torch.optim.Optimizer
) -> Iterator[Finding]:
    """Parameters that only the model has, or only the optimizer."""
    held = {p for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in trained.items() if p not in held]
    if missing:
        yield Finding(
            "error",
            f"the optimizer does not have {some(missing)}",
            "Pass jorge.param_groups(model) once it is as it is trained: moved, wrapped, unfrozen. Or freeze it.",
        )
    frozen = held & {p for p in model.parameters() if not p.requires_grad}
    strangers = len(held - set(trained.values()) - frozen)
    if frozen:
        yield Finding("note", f"{len(frozen)} parameters that the optimizer has are frozen", "They stay as they are.")
    if strangers:
        yield Finding(
            "warning",
            f"{strangers} parameters that the optimizer has are not the model's",
            "Was a layer replaced, or the model built again?",
        )


def of_gradients(trained: dict[str, nn.Parameter]) -> Iterator[Finding]:
    """Parameters whose gradient is missing, sparse or not finite."""
    without = [name for name, p in trained.items() if p.grad is None]
    if len(without) == len(trained):
        yield Finding(
            "error",
            "no gradient reaches any parameter of the model that the loss is handed",
            "Compute the loss of that one: it is a copy, and not the model of your program.",
        )
    elif without:
        yield Finding(
            "warning",
            f"no gradient reaches {some(without)}",
            "It does not take part in the loss: freeze it, or look where its output goes.",
        )
    sparse = [name for name, p in trained.items() if p.grad is not None and p.grad.layout != torch.strided]
    if sparse:
        yield Finding("error", f"the gradient of {some(sparse)} is sparse", "Build embeddings with sparse=False.")
    dense = {name: p.grad for name, p in trained.items() if p.grad is not None and name not in sparse}
    bad = [name for name, grad in dense.items() if not bool(whole(grad).isfinite().all())]
    if bad:
        yield Finding(
            "error",
            f"the gradient of {some(bad)} is not finite",
            "Every step is skipped. Under a gradient scaler, unscale before you clip; else look for overflow.",
        )
    norms = {name: float(torch.linalg.vector_norm(whole(grad.detach()).double())) for name, grad in dense.items()}
    long = [name for name, norm in norms.items() if name not in bad and norm > _LONGEST[dense[name].dtype]]
    if long:
        yield Finding(
            "error",
            f"the gradient of {some(long)} is longer than 1.8e19, where its square overflows",
            "Every step is skipped. Multiply the loss by less; under a gradient scaler, unscale before the step.",
        )


def of_skips(skips: Skips) -> Iterator[Finding]:
    """Steps that the optimizer has left out before: the copy that takes the dry steps counts anew."""
    if skips.total:
        counts = f"{skips.total} steps were left out so far, {skips.in_a_row} in a row at the end"
        yield Finding(
            "warning" if skips.in_a_row else "note",
            f"{counts}: their gradients were not finite",
            "A few are usual with a gradient scaler, which lowers its scale then; many are overflow, or a bad batch.",
        )


def of_groups(optimizer: Jorge) -> Iterator[Finding]:
    """Options of param groups that do not fit, or contradict each other."""
    decayed: list[str] = []
    if len({group["maximize"] for group in optimizer.param_groups}) > 1:
        climbing = [str(i) for i, group in enumerate(optimizer.param_groups) if group["maximize"]]
        yield Finding(
            "warning",
            f"maximize=True in param group {some(climbing)}, and not in the others: they pull the loss apart",
            "Give all groups the same, unless that is meant, as for an adversary or a multiplier.",
        )
    for index, group in enumerate(optimizer.param_groups):
        options = Options.of(group)
        rate, where = float(group.get("initial_lr", options.lr)), f"param group {index}"
        if not float(options.lr):
            yield Finding("note", f"the learning rate of {where} is 0 now", "Dry steps say little then.")
        if options.grafting == "adam" and rate > _HIGH_FOR_ADAM:
            yield Finding(
                "warning",
                f"{where} has lr={rate:g} with a step of Adam's length",
                "That is a rate for SGD: use Jorge.from_sgd, or grafting='sgd'.",
            )
        if options.grafting == "sgd" and 0 < rate < _LOW_FOR_SGD:
            yield Finding(
                "note",
                f"{where} has lr={rate:g} with a step of SGD's length",
                "Where that is a rate for AdamW, use Jorge.from_adamw, or leave grafting out.",
            )
        idle = [n for n in _OF_LENGTH[options.grafting] if n in group and group[n] != DEFAULTS[n]]
        if idle:
            yield Finding(
                "note",
                f"{where} sets {', '.join(idle)}, which is not asked with grafting={options.grafting!r}",
                "Leave it out, or choose the other length.",
            )
        if float(options.weight_decay) > 0:
            names = group.get("param_names", [f"parameter {i}" for i in range(len(group["params"]))])
            decayed += [name for name, p in zip(names, group["params"], strict=False) if p.dim() < 2]
    if decayed:
        yield Finding(
            "note",
            f"{some(decayed)} {'decays' if len(decayed) == 1 else 'decay'}, though biases and norms usually do not",
            "jorge.param_groups(model, weight_decay=…) sees to it.",
        )


def of_shapes(model: nn.Module, optimizer: Jorge) -> Iterator[Finding]:
    """What shapes make of parameters: no matrix, diagonal sides, tables, several matrices in one."""
    rows = optimizer.plan().rows
    if not any(row.kind == "matrix" for row in rows):
        yield Finding(
            "warning", "no parameter is a matrix: all take the plain step of Adam or SGD", "Was the model flattened?"
        )
    tables = {p for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for p in m.parameters()}
    groups = optimizer.param_groups
    every = [(p, group) for group in groups for p in group["params"]]
    diagonal = [row.name for row, (p, _) in zip(rows, every, strict=True) if "diagonal" in (row.left, row.right)]
    if diagonal:
        yield Finding(
            "note",
            f"{some(diagonal)} {'has' if len(diagonal) == 1 else 'have'} a side that is diagonal, as it is so long",
            "That is meant for vocabularies; max_dim says from where on.",
        )
    pairs = [(row.name, p) for row, (p, _) in zip(rows, every, strict=True) if row.left == "full"]
    whole = [name for name, p in pairs if p in tables and p.shape[0] > _LARGE_TABLE]
    if whole:
        yield Finding(
            "note",
            f"{some(whole)}: an embedding that is preconditioned as a matrix",
            "jorge.param_groups(model) leaves those above 8,192 rows a diagonal side; max_dim says from where on.",
        )
    words = {p.shape[0] for p in tables}
    outputs = {m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.out_features in words} - tables
    heads = [name for name, p in pairs if p in outputs and p.shape[0] > _LARGE_TABLE]
    if heads:
        yield Finding(
            "note",
            f"{some(heads)}: outputs over a vocabulary, preconditioned as a matrix",
            "jorge.param_groups(model) leaves those above 8,192 rows a diagonal side; max_dim says from where on.",
        )
    asked = {id(p): group for group in param_groups(model) for _, p in group["params"]}
    several = []
    for row, (p, group) in zip(rows, every, strict=True):
        wanted = asked.get(id(p), {})
        if row.kind == "matrix" and any(wanted.get(k, DEFAULTS[k]) != group[k] for k in ("batch_dims", "splits")):
            several.append(row.name)
    if several:
        yield Finding(
            "note",
            f"{some(several)}: several matrices in one parameter, by what the module is",
            "Build the optimizer with jorge.param_groups(model), or set batch_dims and splits.",
        )


def memory(optimizer: Jorge) -> tuple[int, int | None]:
    """Bytes that the optimizer's state takes in this process, and that are free; `None` where that is not known.

    Where each preconditioner is kept by one of several processes, that is an even share of them.
    """
    needed, devices = 0.0, set()
    for group in optimizer.param_groups:
        options = Options.of(group)
        for p in group["params"]:
            devices.add(p.device)
            held, kept = optimizer.distribution.shares(p, options)
            shape = tuple(p.shape)
            for key, (size, dtype) in layout(shape, p.dtype, options).tensors(shape).items():
                nbytes = math.prod(size) * dtype.itemsize
                needed += nbytes * (kept if "." in key else held if size == shape else 1)
    return round(needed), _free(next(iter(devices))) if len(devices) == 1 else None


def of_memory(each: Sequence[tuple[int, int | None]]) -> Iterator[Finding]:
    """A state that does not fit into the memory that is free, from what each process needs and has."""
    known = [(needed, free) for needed, free in each if free is not None]
    needed, free = max(known, key=lambda pair: pair[0] - pair[1], default=(0, 0))
    if needed > free:
        yield Finding(
            "error",
            f"the optimizer's state takes {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free",
            "preconditioner_dtype=torch.bfloat16 halves the preconditioners; jorge cost says what takes how much.",
        )


def _free(device: torch.device) -> int | None:
    """Bytes that are free on a device, where that is known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def of_scale(optimizer: Jorge, seen: Diagnostics) -> Iterator[Finding]:
    """Gradients that Adam's eps hides, or whose squares underflow: steps are then in proportion to them."""
    hidden, eps = [], 0.0
    rows = iter(optimizer.plan().rows)
    for group in optimizer.param_groups:
        options = Options.of(group)
        for row, p in [(next(rows), p) for p in group["params"]]:
            norm = seen.parameters.get(row.name, {}).get("grad_norm", math.nan)
            if 0 < norm < least_gradient(row.shape, p.dtype, options):
                hidden.append(row.name)
                eps = max(eps, options.eps if options.grafting == "adam" else 0.0)
    if 2 * len(hidden) <= len(seen.parameters):  # a bias before a norm has next to none, and is no sign
        return
    if eps > _UNDERFLOW:
        what, remedy = f"the gradient of {some(hidden)} is smaller than eps, and so are its steps", ", or set eps=0"
    else:
        what, remedy = f"the gradient of {some(hidden)} is so small that its squares underflow, and steps shrink", ""
    yield Finding("warning", what, f"Multiply the loss{remedy}.")


def of_rounding(trained: dict[str, nn.Parameter], start: dict[str, Tensor]) -> Iterator[Finding]:
    """Weights of low precision that steps are too short to change."""
    still = [
        name
        for name, p in trained.items()
        if p.dtype in (torch.bfloat16, torch.float16) and p.grad is not None and bool(whole(p.grad).any())
        if float((whole(p.detach()) != whole(start[name])).double().mean()) < _CHANGED
    ]
    if still:
        yield Finding(
            "warning",
            f"steps are too short to change {some(still)}, of low precision",
            "Keep the weights in float32 and let autocast lower the rest, or raise the learning rate.",
        )


def of_steps(losses: list[float], seen: Diagnostics | None, start: dict[str, Tensor]) -> Iterator[Finding]:
    """What the dry steps show: a loss that rises, skipped steps, steps that are too long."""
    if not all(map(math.isfinite, losses)) or losses[-1] > 2 * abs(losses[0]) + 1e-12:
        yield Finding(
            "warning",
            f"the loss of one batch rises, from {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps",
            "Lower the learning rate, or warm it up.",
        )
    if seen is None:
        return
    if seen.overall["skipped_steps"]:
        yield Finding(
            "error",
            f"{seen.overall['skipped_steps']:.0f} steps were skipped, as gradients were not finite",
            "See the finding on gradients.",
        )
    long = [name for name, each in seen.parameters.items() if each["update_to_weight"] > _LONG]
    at_zero = {name for name, p in start.items() if float(whole(p).double().square().mean().sqrt()) < _AT_ZERO}
    matrices = [name for name in long if "graft_ratio" in seen.parameters[name] and name not in at_zero]
    if matrices:
        yield Finding(
            "warning",
            f"a step moves {some(matrices)} by more than {_LONG:.0%} of its norm",
            "The learning rate is too high for it, or its weights start near zero.",
        )
