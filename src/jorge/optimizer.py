"""Torch's face: param groups, hooks, `step` and `state_dict`. It computes nothing; see :mod:`jorge.step`."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from operator import is_
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import ParamsT

from jorge import checks, options, transfer, validation
from jorge.diagnostics import Diagnostics, diagnose
from jorge.exchange.domains import Distribution, Mode, is_sharded
from jorge.exchange.joining import Joins
from jorge.options import BlockSize, Grafting, GraftNorm, Init, NonFinite, Options, Precision
from jorge.plan import Plan, plan_row
from jorge.replaying import replay_step
from jorge.saving import Saves
from jorge.skips import SkipCounter, Skips, refuse_not_finite
from jorge.step import finite_on, take_step, without_autocast
from jorge.store import Store, unmade_in_a_capture
from jorge.trace import Trace

__all__ = ["Jorge"]


class Jorge(Saves, Joins):
    r"""Second-order optimizer that tracks inverse roots by matrix products, for recipes tuned for SGD or AdamW.

    ::

        for each parameter W with gradient G, at its step t = 1, 2, …
            if G is no matrix:  W ← W − lr·λ·W − lr·(the step of SGD or Adam)
            else, for each block of it (m × n), with L = I, R = I, M = 0 at the start:
                at some steps (each of the first twenty, then ever more rarely, down to every `interval`-th):
                    V ← L G R
                    X ← V Vᵀ + damping                     Y ← Vᵀ V + damping
                    L ← Q(wX) L Q(wX), mean diagonal 1     R ← Q(wY) R Q(wY), mean diagonal 1
                        Q(x) is a polynomial for (1 + x)^(-1/4), w the weight of G beside earlier gradients
                M ← μ M + (1−μ) G                          Adam's own; D is of M, or of what looks ahead
                D ← L M R                                  the direction
                A ← D/(r cᵀ)^(1/4)                         linear maps alone: r, c are variances of D's rows and columns
                ℓ ← ‖the step of SGD or Adam‖              the graft: how far to go
                W ← W − lr·λ·W − lr·ℓ·A/‖A‖                of linear maps in the Schatten norm of order 4

    This is the default, `method="whitening"` with Adam's length; with SGD's, linear maps are like other matrices. A
    linear map is a weight without dims after the second, or with such of 1. :mod:`jorge.reference` is the same as a
    program that can be read in one sitting, with every rule that changes a number; the tests hold this class to it.
    Sources: arXiv 2310.12298 (Jorge), arXiv 1802.09568 (Shampoo), arXiv 2002.11803 (grafting).

    Args:
        params: parameters, param groups, or `model.named_parameters()`, whose names then appear in plans and
            errors. Every option can be given per param group.
        {main}

    Further options:
        {others}
        distributed: how processes that hold the same parameters share the work. `"replicate"`, which `"auto"` is too
            where there is a process group, refreshes each preconditioner in one process and gives it to all;
            `"shard"` keeps it there, and directions are sent; `None` shares nothing. Sharded parameters (DTensors)
            always have owners.
        process_group: of those processes (default: torch's default group, where there is one).
        communication_dtype: in which owners send directions back, `torch.bfloat16` or another of fewer bytes than the
            arithmetic's; gradients are sent to them as they are (default: that of the arithmetic).
        implementation: `foreach`, `fused` and `differentiable`, torch's words for how a step is computed. Programs that
            build any optimizer pass them; they are kept in the groups and change nothing. A step is not differentiable.

    A param group keeps whatever else its owner or a framework puts into it, and so does a checkpoint. A key that is
    nearly the name of an option is refused as a typo.

    Raises:
        TypeError: parameters that are not real floating-point dense tensors; unknown options, also nearly known ones in
            groups.
        ValueError: values out of range, duplicate parameters, no parameters.

    State, per parameter: `step` (int), `exp_avg`, `exp_avg_sq`, `adam_step` and `schatten_scale`, and for linear maps
    `row_var` and `col_var` (with SGD's length `momentum_buffer` and `graft_length`), and for each grid i of equal
    blocks `left.i`, `right.i`, `refreshes.i` (and with Adam's length `quartics.i`). With `batch_dims` or
    `splits` these are of all matrices of the parameter, one after the other, and what is one number or vector for a
    matrix is `[matrices, …]`. Buffers are float32 for parameters of lower precision. `optimizer.state[p]` is what
    the step works on: what is read there is used, and what is replaced, moved or cleared there is respected at the
    next step. Gradients are never modified. A step in which any gradient of a device is not finite, or longer than
    1.8e19, changes nothing there but `step`, and is counted (:meth:`skipped_steps`).

    >>> import torch
    >>> from jorge import Jorge
    >>> model = torch.nn.Linear(8, 4)
    >>> optimizer = Jorge(model.named_parameters(), lr=3e-3, weight_decay=0.1)
    >>> loss = model(torch.ones(2, 8)).square().mean()
    >>> loss.backward()
    >>> optimizer.step()
    >>> sorted(optimizer.state[model.weight])  # doctest: +NORMALIZE_WHITESPACE
    ['adam_step', 'col_var', 'exp_avg', 'exp_avg_sq', 'left.0', 'quartics.0', 'refreshes.0', 'right.0', 'row_var',
     'schatten_scale', 'step']
    """

    #: Told of what refreshes and steps see while it is set (:mod:`jorge.trace`); copies and pickles have none.
    trace: Trace | None = None
    #: Where the processes are found that work together (:mod:`jorge.exchange`); copies and pickles look anew.
    distribution: Distribution

    # Kept out of a caller's `torch.compile` too, which would leave out what is not torch's own.
    @_disable_dynamo
    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        *,
        momentum: float | Tensor | None = None,
        nesterov: bool | None = None,
        weight_decay: float | Tensor | None = None,
        method: str = "whitening",
        grafting: Grafting = "adam",
        graft_limit: float | None = 2.0,
        betas: Sequence[float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        beta2_decay: float | None = -0.8,
        graft_memory: int | None = 20,
        graft_norm: GraftNorm = "schatten",
        adapt_variance: bool = True,
        interval: int = 5,
        warmup_refreshes: int = 20,
        block_size: BlockSize = "auto",
        max_dim: int | None = None,
        batch_dims: int = 0,
        splits: int = 1,
        preconditioner_beta2: float = 0.95,
        damping: float = 1e-4,
        degree: int = 2,
        init: Init = "auto",
        root_eps: float | None = None,
        preconditioner_dtype: torch.dtype | None = None,
        matmul_precision: Precision | tuple[Precision, Precision] = None,
        stagger: bool = False,
        compile_step: bool = False,
        workspace: float | None = 1.0,
        nonfinite: NonFinite = "skip",
        max_consecutive_skips: int | None = 100,
        maximize: bool = False,
        capturable: bool = False,
        cuda_graphs: bool = False,
        distributed: Mode = "auto",
        process_group: dist.ProcessGroup | None = None,
        communication_dtype: torch.dtype | None = None,
        **implementation: bool | None,
    ) -> None:
        given = locals()
        defaults = {name: given[name] for name in options.FIELDS}
        checks.check_known(implementation.keys() - set(transfer.IMPLEMENTATION), "the constructor's arguments")
        if implementation.get("differentiable"):
            raise ValueError("differentiable must be False: no gradient flows through a step")
        checks.check(defaults, "the constructor's arguments")
        defaults = checks.as_kept(defaults)
        self.distribution = Distribution(distributed, process_group, communication_dtype)
        super().__init__(
            validation.listed(params), {**defaults, **implementation, "state_version": options.STATE_VERSION}
        )
        if not any(group["params"] for group in self.param_groups):
            raise ValueError("every param group is empty: nothing to optimize. Is every layer frozen?")
        self._store, self._skips = Store(), SkipCounter()
        self._read: dict[int, tuple[list[Any], Options]] = {}
        self._told_of_flat = validation.warn_of_flat(self.param_groups, self.param_groups)
        if grafting == "sgd":
            # Schedulers that cycle momentum take betas for Adam's where the defaults have both.
            del self.defaults["betas"]

    @classmethod
    def from_sgd(
        cls,
        sgd: torch.optim.SGD,
        *,
        total_steps: int | None = None,
        warmup_steps: int = 0,
        schedule: transfer.Schedule = "step",
        explain: bool = False,
        **overrides: Any,
    ) -> tuple[Jorge, LambdaLR]:
        """Build Jorge and its schedule from a built SGD by the paper's single-shot transfer.

        Args:
            sgd: a `torch.optim.SGD` with the recipe's groups, names and options. Its state is not carried over.
            total_steps: optimizer steps of the whole training, as SGD's; needed unless `schedule="keep"`.
            warmup_steps: steps of linear warm-up, as SGD's.
            schedule: `"step"` (the paper's: ×0.1 at one and two thirds), `"cosine"`, or `"keep"` for a schedule of
                your own: the returned one then does the warm-up alone.
            explain: print what each value was, what it became, and by which rule.
            overrides: further options of :class:`Jorge`, for every group: `method="exact"` is the Shampoo control.

        Returns:
            the optimizer, and a scheduler whose `step()` is called once an optimizer step.

        Raises:
            TypeError: a subclass of SGD, or another optimizer.
            ValueError: dampening; a schedule that does not fit `total_steps`.

        >>> weight = torch.nn.Parameter(torch.ones(4, 4))
        >>> sgd = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1e-4)
        >>> optimizer, scheduler = Jorge.from_sgd(sgd, total_steps=90)
        >>> round(optimizer.param_groups[0]["weight_decay"], 6)
        0.001
        """
        recipe = transfer.recipe_from_sgd(sgd)
        return transfer.build(cls, recipe, total_steps, warmup_steps, schedule, explain, overrides)

    @classmethod
    def from_adamw(
        cls,
        adamw: torch.optim.AdamW,
        *,
        total_steps: int | None = None,
        warmup_steps: int = 0,
        schedule: transfer.Schedule = "keep",
        explain: bool = False,
        **overrides: Any,
    ) -> tuple[Jorge, LambdaLR]:
        """Build Jorge and its schedule from a built AdamW: lr, betas, eps and decay as they are, Adam grafting.

        Arguments, returns and errors are those of :meth:`from_sgd`; `amsgrad=True` is a `ValueError`. The schedule is
        by default left to the caller.
        """
        recipe = transfer.recipe_from_adamw(adamw)
        return transfer.build(cls, recipe, total_steps, warmup_steps, schedule, explain, overrides)

    def skipped_steps(self) -> Skips:
        """How many steps were left out because a gradient was not finite, in all and in a row. Waits for the device.

        >>> weight = torch.nn.Parameter(torch.ones(4, 4))
        >>> optimizer = Jorge([weight])
        >>> weight.grad = torch.full((4, 4), torch.nan)
        >>> optimizer.step()
        >>> optimizer.skipped_steps(), weight[0, 0].item()
        (Skips(total=1, in_a_row=1), 1.0)
        """
        return self._skips.read()

    def release(self) -> None:
        """Give back the captured graphs of `cuda_graphs=True` and their memory; later steps are captured anew."""
        self._store.release()

    @_disable_dynamo
    @torch.no_grad()
    def diagnostics(self) -> Diagnostics:
        """What the optimizer is doing, in plain floats: ask after `backward()` and before `zero_grad()`, now and then.

        It rehearses a step and a refresh with the gradients that are there, on copies: asked before `step()` it
        tells of the step that comes, after it of one more with the same gradient; before the first one, and without
        gradients, all is NaN. Nothing changes. It takes the products of about six refreshes and the memory of a
        work set's state, and waits for the device once. Blocks that another process refreshes are as they are.

        Returns:
            norms, ratios and angles of each parameter and of all (:data:`jorge.diagnostics.MEASURES` says what each
            is), and the skipped steps; printable, and :meth:`jorge.diagnostics.Diagnostics.flat` for loggers.

        Raises:
            RuntimeError, ValueError: as :meth:`step`.

        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = Jorge(model.named_parameters(), lr=0.1)
        >>> model(torch.randn(8, 4)).square().mean().backward()
        >>> optimizer.step()
        >>> seen = optimizer.diagnostics()
        >>> 0 < seen.parameters["weight"]["cosine"] <= 1, seen.overall["skipped_steps"]
        (True, 0.0)
        """
        chosen = self._options()
        agreeing = self.distribution.same_gradients(self.param_groups) if self._store.is_apart else nullcontext()
        with agreeing:
            taking_part = self._store.begin(self.param_groups, chosen, self.distribution, self.state, fresh=False)
            try:
                with without_autocast(taking_part):
                    finite = finite_on(taking_part)
                    if any(each.is_apart for each in taking_part):
                        finite = self.distribution.agreed(finite, taking_part)
                    return diagnose(taking_part, chosen, finite, self.param_groups, self._skips.counts())
            finally:
                for each in taking_part:
                    each.let_go()

    @torch.no_grad()
    def check_replicas(self) -> None:
        """Look whether parameters, or parts of them, that several processes hold are the same there, to the bit.

        All processes have to ask; it waits for the device. It is for finding faults, and no step needs it.

        Raises:
            RuntimeError: with the names of those that are not.
        """
        different = self.distribution.different(self.param_groups)
        if different:
            raise RuntimeError(f"not the same in all processes that hold them: {validation.some(different)}")

    def plan(self) -> Plan:
        """What each parameter gets: its group's lr and decay, blocks, sides, state bytes, and why.

        Printable, and data in `.rows`.

        >>> import torch
        >>> plan = Jorge(torch.nn.Linear(8, 4).named_parameters(), lr=0.1).plan()
        >>> [(row.name, row.kind, row.state_bytes) for row in plan.rows]
        [('weight', 'matrix', 644), ('bias', 'vector', 36)]
        """
        return Plan(
            tuple(
                plan_row(name, tuple(p.shape), p.dtype, Options.of(group), index)
                for index, group in enumerate(self.param_groups)
                for p, name in zip(group["params"], validation.names(group, index), strict=True)
            )
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch; a failed call leaves the optimizer as it was.

        Raises:
            TypeError: parameters that are not real floating-point dense tensors; a key that is nearly an option's name.
            ValueError: values out of range, duplicate parameters.
        """
        group = dict(param_group) if isinstance(param_group, dict) else param_group
        validation.check_params(group, [p for g in self.param_groups for p in g["params"]], len(self.param_groups))
        where = f"param group {len(self.param_groups)}"
        checks.check_typos(group, where)
        if "betas" not in self.defaults:
            group.setdefault("betas", options.DEFAULTS["betas"])
        checks.check({**self.defaults, **group}, where)
        validation.check_divisible(group, len(self.param_groups), Options.of({**self.defaults, **group}))
        super().add_param_group(checks.as_kept(group))
        added = self.param_groups[-1]
        on_cuda = bool(added["params"]) and all(p.is_cuda and not is_sharded(p) for p in added["params"])
        if added["block_size"] == "auto" and on_cuda:
            added["block_size"] = options.CUDA_BLOCK_SIZE  # said, so that a checkpoint of it fits on every device
        if "_store" in self.__dict__:  # not while it is built, group by group
            self._told_of_flat |= validation.warn_of_flat([added], self.param_groups)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    # Kept out of a caller's `torch.compile`, which would guard on the count of steps and compile each step anew.
    @_disable_dynamo
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: re-evaluates the model and returns the loss.

        Raises:
            RuntimeError: a sparse gradient, one of another shape or device than its parameter, an entry of the state
                that cannot be used, or an option that shapes the state and was changed after the first step; a
                parameter that has become a DTensor; with `nonfinite="raise"` a gradient that is not finite; a capture
                in a CUDA graph that is not allowed, or for which no step was taken before.
            RuntimeError: `max_consecutive_skips` steps in a row were left out.
            ValueError: an option that was changed to a value out of range.

        No weight has moved then, and no state that was there. An error in the middle of the arithmetic, such as a lack
        of memory, leaves work sets as :func:`jorge.step.take_step` says.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if dist.is_available() and dist.is_initialized():
            self.tell_that_it_goes_on()
            with self.distribution.same_gradients(self.param_groups):
                self._take_step()
            if self.distribution.is_debugged:
                self.check_replicas()
        else:
            self._take_step()
        return loss

    def _take_step(self) -> None:
        chosen = self._options()
        if dist.is_available() and dist.is_initialized():
            self.distribution.check_replicas(self.param_groups, chosen)
        capturing = self._is_captured()
        taking_part = self._store.begin(self.param_groups, chosen, self.distribution, self.state, frozen=capturing)
        if not taking_part and not self._store.is_used and dist.is_available() and dist.is_initialized():
            validation.warn_of_no_gradients()
        try:
            with without_autocast(taking_part):
                finite = finite_on(taking_part)
                if not all(each.exchange.alone for each in taking_part):
                    finite = self.distribution.agreed(finite, taking_part)
                asked = [each.device for each in taking_part if chosen[each.index].nonfinite == "raise"]
                if asked:
                    refuse_not_finite(finite, asked, self.param_groups)
                if capturing and not self._skips.covers(finite):
                    raise unmade_in_a_capture()
                self._skips.count(finite, frozen=capturing)
                self._skips.check([each.max_consecutive_skips for each in chosen], self.param_groups)
                for each in taking_part:
                    mine, flag = chosen[each.index], finite[each.device]
                    if each.graphs is None:
                        take_step(each, mine, flag, self.trace)
                    else:
                        replay_step(each, each.graphs, mine, flag, self.trace)
        finally:
            for each in taking_part:
                each.let_go()

    def _options(self) -> list[Options]:
        """Those of each param group, checked where they have changed since they were read."""
        if not self._read and not self._told_of_flat:  # ZeRO puts flat parameters into the groups of a built optimizer
            self._told_of_flat = validation.warn_of_flat(self.param_groups, self.param_groups)
        found = []
        for index, group in enumerate(self.param_groups):
            values, chosen = self._read.get(index, ([], None))
            if chosen is None or not all(map(is_, map(group.get, options.FIELDS), values)):
                chosen = checks.read(group, index)
                self._read[index] = (list(map(group.get, options.FIELDS)), chosen)
            found.append(chosen)
        return found

    def _is_captured(self) -> bool:
        """Whether the step is being captured in a CUDA graph, which every param group has to allow."""
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if capturing and not all(group["capturable"] for group in self.param_groups):
            raise RuntimeError("step() is being captured in a CUDA graph: build the optimizer with capturable=True")
        return capturing


def _documented(main: bool) -> str:
    return textwrap.indent(options.documentation(main=main), " " * 8).lstrip()


Jorge.__doc__ = (Jorge.__doc__ or "").replace("{main}", _documented(True)).replace("{others}", _documented(False))
