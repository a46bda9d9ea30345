"""The options of a param group: a field each with its default, its check, a sentence, and whether it shapes the state.

All else follows from the fields: the constructor's signature and documentation, the checks and the tables of
:mod:`jorge.checks`, and what `jorge cost` and the laboratory take.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, TypeGuard, get_args

import torch
from torch import Tensor

#: Version of the state's layout; a change of keys, shapes or meaning raises it.
STATE_VERSION = 5

#: Largest side of a block; `"auto"` is :func:`jorge.blocks.automatic`, and `None` cuts nothing.
BlockSize = int | Literal["auto"] | None
#: What `"auto"` is for a group of parameters on CUDA, where blocks of 256 cost about what those of 128 do
#: (`docs/notebook/gpu.md`).
CUDA_BLOCK_SIZE = 256
#: Of matrix products; what `None` is, the option `matmul_precision` says.
Precision = Literal["float32", "tf32", "bfloat16"] | None
Grafting = Literal["sgd", "adam"]
GraftNorm = Literal["frobenius", "schatten"]
Init = Literal["auto", "paper"]
NonFinite = Literal["skip", "raise"]

Group = dict[str, Any]
#: A number of the step, or a 0-dim tensor that a compiled or captured step reads anew each time.
Scalar = float | Tensor


@dataclass(frozen=True)
class Rule:
    """What is known of an option beside its type and default; it lies in the metadata of its field.

    Args:
        accepts: whether a value may be given.
        wants: what it accepts, in words.
        says: what the option does, for the documentation.
        main: one of the ten that people set; the others are documented after these.
        shapes_state: the state has another layout, or means something else, with another value, so the value cannot
            change once there is state.
        arranges: with another value the state lies otherwise in memory; it is moved when the value changes.
        tensors: it may be a tensor with one element, or have some; a step does not read it on the host.
    """

    accepts: Callable[[Any], bool]
    wants: str
    says: str
    main: bool = False
    shapes_state: bool = False
    arranges: bool = False
    tensors: bool = False


def _number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def _at_least(least: float) -> Callable[[Any], bool]:
    return lambda value: _number(value) and value >= least


def _whole(least: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _fraction(value: Any) -> bool:
    return _number(value) and 0 <= value < 1


def is_scalar_tensor(value: Any) -> bool:
    """Whether a value is a tensor that may stand for a number."""
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()


def _or_tensor(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A tensor's number is read, which waits for its device."""
    return lambda value: accepts(value.item() if is_scalar_tensor(value) else value)


def _betas(value: Any) -> bool:
    return isinstance(value, Sequence) and len(value) == 2 and all(map(_or_tensor(_fraction), value))


def is_series(value: Any) -> TypeGuard[Sequence[Any]]:
    """Whether a value is a tuple, a list, or of another type of sequence that is no word: a configuration's own."""
    return isinstance(value, Sequence) and not isinstance(value, str)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _or_none(accepts: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or accepts(value)


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(each) and value == each for each in values)


_PRECISIONS = get_args(get_args(Precision)[0])


def _precision(value: Any) -> bool:
    one = _one_of(None, *_PRECISIONS)
    return len(value) == 2 and all(map(one, value)) if is_series(value) else one(value)


def _option(default: Any, accepts: Callable[[Any], bool], wants: str, says: str, **marks: bool) -> Any:
    return field(default=default, metadata={"rule": Rule(accepts, wants, says, **marks)})


_POSITIVE = "a finite number of at least 0"
#: What stands for a number that schedules change.
_TENSOR = "or a floating-point tensor with one such element"


#: The longest side that is not diagonal, by memory alone: where it is cut into blocks, that of common networks' layers
#: (a Llama of 70 billion parameters; the shortest of common vocabularies is 30,000); and where it is whole.
_LONGEST_CUT, _LONGEST_WHOLE = 28_672, 8192


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a param group. Their sentences are those of :class:`jorge.Jorge`'s documentation.

    What is given as `None` and follows the step length (momentum, Nesterov, decay) has here the value that it follows.
    """

    lr: Scalar = _option(
        1e-3,
        _or_tensor(_at_least(0)),
        f"{_POSITIVE}, {_TENSOR}",
        "learning rate, a float or a tensor with one element; the one that AdamW, or with SGD's length SGD, was tuned "
        "to. The default is that of both in torch.",
        main=True,
        tensors=True,
    )
    momentum: Scalar = _option(
        None,
        _or_none(_or_tensor(_fraction)),
        f"None, a number in [0, 1), {_TENSOR}",
        "momentum of the gradients, whose average is preconditioned and gives the step's length. With Adam's length it "
        "is the first of `betas`, which `None` follows, also while a scheduler cycles it. With SGD's `None` is 0.9.",
        main=True,
        tensors=True,
    )
    nesterov: bool = _option(
        None,
        _or_none(_flag),
        "None, True or False",
        "Nesterov momentum: what is preconditioned, and the step length, look ahead. `None` is True with Adam's length "
        "and False with SGD's.",
        main=True,
    )
    weight_decay: Scalar = _option(
        None,
        _or_none(_or_tensor(_at_least(0))),
        f"None, {_POSITIVE}, {_TENSOR}",
        "decoupled weight decay: `W ← W − lr·weight_decay·W`. SGD's coupled one is `1 − momentum` of it. `None` is "
        "0.01 with Adam's length and 0 with SGD's, as torch's AdamW and SGD have it.",
        main=True,
        tensors=True,
    )
    method: str = _option(
        "whitening",
        lambda value: isinstance(value, str),  # and the name of a method: see jorge.checks
        "a method's name",
        'how the preconditioners are tracked: `"whitening"`, `"congruence"`, `"binomial"` (the paper\'s) or `"exact"` '
        "(Shampoo).",
        main=True,
        shapes_state=True,
    )
    grafting: Grafting = _option(
        "adam",
        _one_of("sgd", "adam"),
        "'sgd' or 'adam'",
        'whose step length: `"adam"`, for the lr of a recipe for Adam, or `"sgd"`, for that of one for SGD.',
        main=True,
        shapes_state=True,
    )
    graft_limit: float | None = _option(
        2.0,
        _or_none(_at_least(1)),
        "None or a finite number of at least 1",
        "a step of SGD's length is at most so many times as long as the last ten or so on average, for each matrix; "
        "`None` is no limit. Without it a bad batch at SGD's highest learning rate may send the weights off for good. "
        "Adam's length needs none.",
    )
    betas: tuple[Scalar, Scalar] = _option(
        (0.9, 0.999),
        _betas,
        "two numbers in [0, 1), or floating-point tensors with one such element each",
        "Adam's running averages, for Adam's length only. The first is the momentum; a `momentum` that is given takes "
        "its place, also where a scheduler cycles it.",
        main=True,
        tensors=True,
    )
    eps: float = _option(
        1e-8,
        _at_least(0),
        _POSITIVE,
        "Adam's denominator term, for Adam's length only. With 0 steps do not depend on the scale of the loss while "
        "gradients are above about 1e-18, root mean square, in float32; below they shrink with them.",
    )
    beta2_decay: float | None = _option(
        -0.8,
        _or_none(lambda value: _number(value) and -1 <= value < 0),
        "None or a number in [-1, 0)",
        "as in `torch.optim.Adafactor`: Adam's length of matrices remembers squared gradients by "
        "`max(1 − β2, t**beta2_decay)` at step t instead of `1 − β2`. `None` is Adam's own rule, by which steps are "
        "too short for long where the first gradients are by far the largest.",
        shapes_state=True,
    )
    graft_memory: int | None = _option(
        20,
        _or_none(_whole(1)),
        "None or a whole number of at least 1",
        "Adam's length of matrices remembers the squared gradients of at most so many steps, however close to 1 the "
        "second of `betas` is: a length follows one number, which needs no longer memory. `None` is as many as that "
        "says. Without `beta2_decay` it is not asked.",
    )
    graft_norm: GraftNorm = _option(
        "schatten",
        _one_of("frobenius", "schatten"),
        "'frobenius' or 'schatten'",
        "in which norm a step is as long as Adam's, for Adam's length only. `'schatten'` is the fourth root of the sum "
        "of the singular values' fourth powers, measured at refreshes. `'frobenius'` is the root of that of their "
        "squares, in which a direction that is spread over more singular values takes a shorter step along each; a "
        "kernel of more than one tap, which is no linear map of that matrix, and one whose sides are both diagonal "
        "always take it.",
        shapes_state=True,
    )
    adapt_variance: bool = _option(
        True,
        _flag,
        "True or False",
        "divide the direction by the fourth root of the variances of its rows and of its columns, for Adam's length "
        "and linear maps only (see `graft_norm`).",
        shapes_state=True,
    )
    interval: int = _option(
        5,
        _whole(1),
        "a whole number of at least 1",
        "steps between refreshes of the preconditioners, in the end (see `warmup_refreshes`).",
        main=True,
    )
    warmup_refreshes: int = _option(
        20,
        _whole(0),
        "a whole number of at least 0",
        "so many refreshes follow each other at each gap that is shorter than `interval`: with the defaults steps 1 to "
        "20 refresh, then every second to 60, every third to 120, every fourth to 200. With 0 training ends higher, or "
        "diverges with SGD's length.",
    )
    block_size: BlockSize = _option(
        "auto",
        lambda value: value is None or _one_of("auto")(value) or _whole(1)(value),
        "a whole number of at least 1, 'auto' or None",
        "largest side of a block; sides above 256 are cut shorter than that where it makes blocks near-square, as the "
        'work is least there. `None` cuts nothing. `"auto"` leaves a side of up to 256 whole and cuts a longer one to '
        f"equal parts of about 128; for a new group whose parameters are all on CUDA, and not sharded, it is "
        f"{CUDA_BLOCK_SIZE}, and the group then says so. `jorge cost --budget` says what larger ones would cost.",
        main=True,
        shapes_state=True,
    )
    max_dim: int | None = _option(
        None,
        _or_none(_whole(1)),
        "None or a whole number of at least 1",
        f"a side longer than this is diagonal, one number a row. `None` is {_LONGEST_CUT:,}, which keeps vocabularies "
        "diagonal and cuts the layers of large language models into blocks like all others; with `block_size=None`, "
        f"which cuts nothing, it is {_LONGEST_WHOLE:,}.",
        shapes_state=True,
    )
    batch_dims: int = _option(
        0,
        _whole(0),
        "a whole number of at least 0",
        "so many leading dims count separate matrices: 1 for the weights of experts, `[experts, in, out]`. Each is "
        "stepped as if it were a parameter of its own.",
        shapes_state=True,
    )
    splits: int = _option(
        1,
        _whole(1),
        "a whole number of at least 1",
        "so many equal parts of the first dim after these are separate matrices: 3 for a fused QKV, `[3 · d, d]`. "
        "Vectors are not asked.",
        shapes_state=True,
    )
    preconditioner_beta2: float = _option(
        0.95,
        lambda value: _fraction(value) and value > 0,
        "in (0, 1)",
        "memory of the second moments, in refreshes: 0.95 remembers about 20; with whitening fewer where the gap "
        "between them is wider, down to a third at gaps of 5 and above.",
    )
    damping: float = _option(
        1e-4,
        _at_least(0),
        _POSITIVE,
        "noise added to the gradient in expectation, relative to its mean square; it keeps dead rows bounded. Without "
        "it a dead row overflows.",
    )
    degree: int = _option(
        2,
        _one_of(1, 2),
        "1 or 2",
        "of the polynomial that stands for the root, or of the binomial series; 1 saves a product of five.",
    )
    init: Init = _option(
        "auto",
        _one_of("auto", "paper"),
        "'auto' or 'paper'",
        '`"auto"` starts the binomial method from the first gradient\'s scale, `"paper"` from `root_eps`.',
    )
    root_eps: float | None = _option(
        None,
        _or_none(lambda value: _number(value) and value > 0),
        "None or a finite number above 0",
        "ε of the method's start or regularisation; `None` takes the method's own (1e-6 for binomial and exact, 1e-3 "
        "for exact with bfloat16 storage, 1e-2 for congruence; whitening has none).",
    )
    preconditioner_dtype: torch.dtype | None = _option(
        None,
        _one_of(None, torch.float32, torch.float64, torch.bfloat16),
        "None, torch.float32, torch.float64 or torch.bfloat16",
        "dtype in which the preconditioners are stored; `None` is float32, or float64 for float64 parameters. "
        "`torch.bfloat16` halves their memory; the arithmetic stays float32.",
        main=True,
        shapes_state=True,
    )
    matmul_precision: Precision | tuple[Precision, Precision] = _option(
        None,
        _precision,
        f"one of {', '.join(map(repr, _PRECISIONS))} or None, or a pair (refresh, direction)",
        'of the matrix products: `"float32"`, `"tf32"` or `"bfloat16"` (with sums in float32) for both the refresh and '
        'the direction, or a pair for each. `None` is `"tf32"` on CUDA; elsewhere, and in a compiled step, it leaves '
        "them to torch's settings.",
    )
    stagger: bool = _option(
        False,
        _flag,
        "True or False",
        "refresh an `interval`-th part of the blocks at every step, instead of all at every `interval`-th, so that no "
        "step is slow.",
    )
    compile_step: bool = _option(
        False,
        _flag,
        "True or False",
        "run the step through `torch.compile`: one graph for each kind of step, none more when lr, momentum, decay or "
        "the step count change. Needs what `torch.compile` needs.",
        arranges=True,
    )
    workspace: float | None = _option(
        1.0,
        _or_none(lambda value: _number(value) and value > 0),
        "None or a finite number above 0",
        "aim for the temporary memory of a step, as a multiple of the parameters' bytes (but never below 64 MiB, or "
        "2 GiB on CUDA). Less of it means more launches; `None` means the fewest.",
        arranges=True,
    )
    nonfinite: NonFinite = _option(
        "skip",
        _one_of("skip", "raise"),
        "'skip' or 'raise'",
        'what becomes of a step with a gradient that is not finite: `"skip"` leaves it out on that device and counts '
        'it (`optimizer.skipped_steps()`); `"raise"` refuses it with the name of the parameter, and waits for the '
        "device at every step.",
    )
    max_consecutive_skips: int | None = _option(
        100,
        _or_none(_whole(1)),
        "None or a whole number of at least 1",
        "so many steps left out in a row, on one device, are an error: by then the weights are mostly not finite "
        "themselves. On CUDA it is raised up to 32 steps later, as nobody waits for the count. `None` is no limit.",
    )
    maximize: bool = _option(False, _flag, "True or False", "ascend instead of descend.")
    capturable: bool = _option(
        False,
        _flag,
        "True or False",
        "the step may be captured in a CUDA graph: give `lr` as a tensor on the device, and take a step before the "
        "capture. What a step does is decided on the host, so that each kind of step is a graph of its own; it reads "
        "the gradients at their addresses, and a replay does not advance `step`.",
    )
    cuda_graphs: bool = _option(
        False,
        _flag,
        "True or False",
        "on CUDA the optimizer captures its step in CUDA graphs, one for each kind of step, once the gap between "
        "refreshes has reached `interval`, and replays them: the host then starts a dozen operators a step. Gradients "
        "may lie anywhere, or be missing. It takes the memory of a copy of the gradients, and keeps the temporary "
        "memory of a step (`optimizer.release()` gives both back). On other devices it changes nothing.",
        arranges=True,
    )

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> Options:
        """Those of a param group, unchecked; what it lacks is as by default."""
        return cls(**{name: group[name] for name in FIELDS if name in group})

    #: Of the products of a refresh, and of the direction: `matmul_precision` as a pair.
    precisions: tuple[Precision, Precision] = field(init=False, repr=False, compare=False)
    #: Whether the step's Schatten norm is measured.
    measures_schatten: bool = field(init=False, repr=False, compare=False)
    #: Whether directions are adapted to their variance.
    adapts: bool = field(init=False, repr=False, compare=False)
    #: Whether weights decay, as far as the host knows: a tensor is not read.
    decays: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        given = self.matmul_precision
        pair = (given, given) if given is None or isinstance(given, str) else (given[0], given[1])
        adam = self.grafting == "adam"
        object.__setattr__(self, "precisions", pair)  # fields, as the step reads them often
        object.__setattr__(self, "measures_schatten", adam and self.graft_norm == "schatten")
        object.__setattr__(self, "adapts", adam and self.adapt_variance)
        follows = {"momentum": self.betas[0] if adam else 0.9, "nesterov": adam, "weight_decay": 0.01 if adam else 0.0}
        for name, value in follows.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if adam:
            object.__setattr__(self, "betas", (self.momentum, self.betas[1]))
        object.__setattr__(self, "decays", isinstance(self.weight_decay, Tensor) or self.weight_decay != 0)

    @property
    def alone(self) -> bool:
        """Whether each process takes its steps by itself, as what is compiled or captured waits for no other."""
        return self.compile_step or self.capturable or self.cuda_graphs

    @property
    def longest_side(self) -> int:
        """The longest side that is not diagonal: `max_dim`."""
        if self.max_dim is not None:
            return self.max_dim
        return _LONGEST_WHOLE if self.block_size is None else _LONGEST_CUT

    @property
    def shaping(self) -> tuple[Any, ...]:
        """The values that shape the state."""
        return tuple(getattr(self, name) for name in SHAPING)

    def replace(self, **changes: Any) -> Options:
        """These, with some changed."""
        return dataclasses.replace(self, **changes)


#: The fields by name, and the rule of each.
FIELDS = {each.name: each for each in dataclasses.fields(Options) if each.init}
RULES: dict[str, Rule] = {name: each.metadata["rule"] for name, each in FIELDS.items()}
#: Options that shape the state.
SHAPING = tuple(name for name, rule in RULES.items() if rule.shapes_state)
#: Options by which the state is arranged in memory.
ARRANGING = tuple(name for name, rule in RULES.items() if rule.arranges)
#: The defaults.
DEFAULTS: dict[str, Any] = {name: each.default for name, each in FIELDS.items()}


@cache
def documentation(*, main: bool) -> str:
    """The options in the form of a docstring's arguments: the ten that people set, or the others."""
    lines = []
    for name, rule in RULES.items():
        if rule.main == main:
            default = f" Default {DEFAULTS[name]!r}."
            lines.append(
                textwrap.fill(f"{name}: {rule.says}{default}", 108, subsequent_indent="    ", break_on_hyphens=False)
            )
    return "\n".join(lines)
