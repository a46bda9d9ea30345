"""The optimizer: param groups, state and step. It checks and orchestrates; the modules below compute.

A step: gradients → bundles of equal shapes → stacks of equal blocks → refresh of the roots (every `interval` steps) →
direction → momentum → graft → weight decay and update → parameters. See :mod:`jorge.cohorts`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.optimizer import ParamsT

from jorge import options, routing, transfer
from jorge.blocks import BlockSize
from jorge.cohorts import STRUCTURAL, Cohort, layout, structure
from jorge.methods import Init
from jorge.roots import Precision

__all__ = ["Jorge"]


class Jorge(torch.optim.Optimizer):
    r"""Second-order optimizer that tracks inverse roots by matrix products, for recipes tuned for SGD or AdamW.

    Each weight matrix (or block of it) of m × n gets two preconditioners, m × m and n × n, and moves along
    `L G R` by as much as SGD or Adam would (grafting). Vectors and scalars take the graft optimizer's own step.

    Every option can be given per param group. Sources: arXiv 2310.12298 (Jorge), arXiv 1802.09568 (Shampoo),
    arXiv 2002.11803 (grafting).

    Args:
        params: parameters, param groups, or `model.named_parameters()`, whose names then appear in plans and errors.
        lr: learning rate, a float or a tensor with one element; the one that SGD or AdamW was tuned to.
        momentum: momentum of the direction, and of SGD's step length, in [0, 1). Default 0.9, as in most recipes; it
            is meant to come from the recipe, so it was not measured. Schedulers that cycle momentum cycle the first
            of `betas` with Adam grafting, and leave this one.
        nesterov: Nesterov momentum, for the direction and for the step length.
        weight_decay: decoupled weight decay: `W ← W − lr·weight_decay·W`. SGD's coupled one is `1 − momentum` of it.
        method: how the roots are tracked: `"whitening"` (default: it won in the measurements of `docs/methods.md`),
            `"congruence"`, `"binomial"` (the paper's) or `"exact"` (Shampoo).
        grafting: whose step length: `"sgd"` or `"adam"`.
        graft_limit: a step of SGD's length is at most so many times as long as the last ten or so on average, for each
            matrix; `None` is no limit. Default 2: without it a bad batch at SGD's highest learning rate may send the
            weights off for good (`docs/defaults.md`), with it steady training is as it was. Adam's needs none.
        betas: Adam's running averages, for `grafting="adam"` only.
        eps: Adam's denominator term, for `grafting="adam"` only.
        beta2_decay: as in `torch.optim.Adafactor`: the step length of matrices remembers squared gradients by
            `max(1 − β2, t**beta2_decay)` at step t instead of Adam's `1 − β2`, for `grafting="adam"` only. Default
            `None`, which is Adam; :meth:`from_adamw` gives -0.8, as Adam's length is too short for long where the
            first gradients are by far the largest (`docs/defaults.md`).
        interval: steps between refreshes of the roots, in the end (see `warmup_refreshes`). Default 5: when every step
            up to the thirtieth refreshed and then every `interval`-th, it reached targets in up to a twentieth fewer
            steps than 10, for 1 to 10 % more time a step (`docs/defaults.md`).
        warmup_refreshes: so many refreshes follow each other at each gap that is shorter than `interval`: with the
            defaults steps 1 to 20 refresh, then every second to 60, every third to 120, every fourth to 200. Default
            20; with 0 training ends higher, or diverges with SGD's length (`docs/defaults.md`).
        block_size: largest side of a block; sides above 256 are cut shorter than that where it makes blocks
            near-square, as the work is least there. `None` cuts nothing. Default `"auto"`: a side of up to 256 is
            whole and a longer one in equal parts of about 128, for a sixth to a half of the operations of whole sides
            (`docs/speed.md`). `jorge cost --budget` says what larger ones would cost a model.
        max_dim: a side longer than this is diagonal, one number a row. Default 8192, by memory alone: it keeps
            vocabularies diagonal and the layers of common networks whole; not measured in training.
        preconditioner_beta2: memory of the second moments, in refreshes: 0.95 remembers about 20; with whitening fewer
            where the gap between them is wider, down to a third at gaps of 5 and above (`docs/methods.md`). Default
            0.95: 0.9 and 0.99 are within noise of it (`docs/defaults.md`).
        damping: noise added to the gradient in expectation, relative to its mean square; it keeps dead rows bounded.
            Default 1e-4: 0 to 1e-3 train alike (`docs/defaults.md`), but without it a dead row overflows.
        degree: of the polynomial that stands for the root, or of the binomial series: 2 or 1, which saves a product of
            five. Default 2, as in the paper.
        init: `"auto"` starts the binomial method from the first gradient's scale, `"paper"` from `root_eps`.
        root_eps: ε of the method's start or regularisation; `None` takes the method's own (1e-6 for binomial and
            exact, 1e-2 for congruence; whitening has none).
        preconditioner_dtype: dtype in which the roots are stored; `None` is float32, or float64 for float64
            parameters. `torch.bfloat16` halves their memory, and that of the graft's SGD momentum, of which only the
            norm is used; the arithmetic stays float32.
        matmul_precision: of the matrix products: `None` leaves it to torch's settings; `"float32"`, `"tf32"` or
            `"bfloat16"` (with sums in float32) for both the refresh and the direction, or a pair for each. The
            accuracy of each is in `docs/speed.md`.
        stagger: refresh an `interval`-th part of the blocks at every step, instead of all at every `interval`-th, so
            that no step is slow.
        fused: run the step through `torch.compile`: one graph for each kind of step (a refresh of four, three or two
            substeps, of one, damped or not, or no refresh), none more when lr, momentum, decay or
            the step count change. Needs what `torch.compile` needs.
        workspace: aim for the temporary memory of a step, as a multiple of the parameters' bytes (but never below 32
            MiB). Less of it means more launches; `None` means the fewest.
        maximize: ascend instead of descend.
        capturable: the step may be captured in a CUDA graph: give `lr` as a tensor on the device. What a step does is
            decided on the host, so that each kind of step is a graph of its own (`docs/speed.md`), and a replay does
            not advance `step`. Not yet run on a GPU.

    Raises:
        TypeError: parameters that are not real floating-point dense tensors; unknown options.
        ValueError: values out of range, duplicate parameters, no parameters.

    State, per parameter: `step` (int), `momentum_buffer`, `graft_momentum_buffer` and `graft_length` (or `exp_avg`,
    `exp_avg_sq` and `adam_step`), and for each block i `left.i`, `right.i`, `refreshes.i`. Buffers are float32 for
    parameters of lower precision. Gradients are never modified. A step in which any gradient of a device is not
    finite, or longer than 1.8e19, changes nothing there but the host's step counter.

    >>> import torch
    >>> from jorge import Jorge
    >>> model = torch.nn.Linear(8, 4)
    >>> optimizer = Jorge(model.named_parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    >>> loss = model(torch.ones(2, 8)).square().mean()
    >>> loss.backward()
    >>> optimizer.step()
    >>> sorted(optimizer.state[model.weight])
    ['graft_length', 'graft_momentum_buffer', 'left.0', 'momentum_buffer', 'refreshes.0', 'right.0', 'step']
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        method: Literal["whitening", "congruence", "binomial", "exact"] = "whitening",
        grafting: Literal["sgd", "adam"] = "sgd",
        graft_limit: float | None = 2.0,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        beta2_decay: float | None = None,
        interval: int = 5,
        warmup_refreshes: int = 20,
        block_size: BlockSize = "auto",
        max_dim: int = 8192,
        preconditioner_beta2: float = 0.95,
        damping: float = 1e-4,
        degree: int = 2,
        init: Init = "auto",
        root_eps: float | None = None,
        preconditioner_dtype: torch.dtype | None = None,
        matmul_precision: Precision | tuple[Precision, Precision] = None,
        stagger: bool = False,
        fused: bool = False,
        workspace: float | None = 1.0,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults: dict[str, Any] = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "method": method,
            "grafting": grafting,
            "graft_limit": graft_limit,
            "betas": betas,
            "eps": eps,
            "beta2_decay": beta2_decay,
            "interval": interval,
            "warmup_refreshes": warmup_refreshes,
            "block_size": block_size,
            "max_dim": max_dim,
            "preconditioner_beta2": preconditioner_beta2,
            "damping": damping,
            "degree": degree,
            "init": init,
            "root_eps": root_eps,
            "preconditioner_dtype": preconditioner_dtype,
            "matmul_precision": matmul_precision,
            "stagger": stagger,
            "fused": fused,
            "workspace": workspace,
            "maximize": maximize,
            "capturable": capturable,
            "state_version": options.STATE_VERSION,
        }
        options.check_group(defaults, "the constructor's arguments")
        self._cohorts: list[Cohort] = []
        self._checked: dict[int, dict[str, Any]] = {}
        super().__init__(options.listed(params), defaults)
        if not any(group["params"] for group in self.param_groups):
            raise ValueError("every param group is empty: nothing to optimize. Is every layer frozen?")
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
        return cls._transferred(recipe, total_steps, warmup_steps, schedule, explain, overrides)

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
        return cls._transferred(recipe, total_steps, warmup_steps, schedule, explain, overrides)

    @classmethod
    def _transferred(
        cls,
        recipe: transfer.Recipe,
        total_steps: int | None,
        warmup_steps: int,
        schedule: transfer.Schedule,
        explain: bool,
        overrides: dict[str, Any],
    ) -> tuple[Jorge, LambdaLR]:
        factor = transfer.lr_factor(schedule, total_steps=total_steps, warmup_steps=warmup_steps)
        if "params" in overrides:
            raise TypeError("params come from the optimizer that is transferred: use add_param_group() for more")
        groups = [{**group, **overrides} for group in recipe.groups]
        optimizer = cls(
            groups, groups[0]["lr"], **{k: v for k, v in groups[0].items() if k not in ("params", "lr", "name")}
        )
        if explain:
            print(recipe)
            print(transfer.explain_schedule(schedule, total_steps, warmup_steps))
            if overrides:
                print("given by the caller:", ", ".join(f"{name}={value!r}" for name, value in overrides.items()))
        return optimizer, LambdaLR(optimizer, factor)

    def plan(self) -> routing.Plan:
        """What each parameter gets: blocks, sides, state bytes, and why. Printable, and data in `.rows`.

        >>> import torch
        >>> plan = Jorge(torch.nn.Linear(8, 4).named_parameters(), lr=0.1).plan()
        >>> [(row.name, row.kind, row.state_bytes) for row in plan.rows]
        [('weight', 'matrix', 588), ('bias', 'vector', 16)]
        """
        rows = []
        for index, group in enumerate(self.param_groups):
            for p, name in zip(group["params"], options.names(group, index), strict=True):
                rows.append(routing.plan_row(name, tuple(p.shape), p.dtype, group))
        return routing.Plan(tuple(rows))

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, as in torch; a failed call leaves the optimizer as it was.

        Raises:
            TypeError: parameters that are not real floating-point dense tensors; unknown options.
            ValueError: values out of range, duplicate parameters.
        """
        group = dict(param_group) if isinstance(param_group, dict) else param_group
        options.check_params(group, [p for g in self.param_groups for p in g["params"]], len(self.param_groups))
        where = f"param group {len(self.param_groups)}"
        options.check_known(group, where)
        if group.get("grafting", self.defaults["grafting"]) == "adam" or "betas" not in self.defaults:
            group.setdefault("betas", self.defaults.get("betas", (0.9, 0.999)))
        options.check_group({**self.defaults, **group}, where)
        super().add_param_group(group)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step.

        Args:
            closure: re-evaluates the model and returns the loss.

        Raises:
            RuntimeError: a sparse gradient, one of another shape or device than its parameter, or an option that
                shapes the state and was changed after the first step. Nothing is changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_step()
        self._follow_groups()
        self._admit()
        finite: dict[torch.device, Tensor] = {}
        taking_part = []
        for cohort in self._cohorts:
            ok = cohort.finite()
            if ok is not None:
                taking_part.append(cohort)
                finite[cohort.device] = ok & finite[cohort.device] if cohort.device in finite else ok
        for cohort in taking_part:
            cohort.step(self.param_groups[cohort.group_index], finite[cohort.device])
            for p, step in cohort.steps().items():
                self.state[p]["step"] = step
        return loss

    def _check_step(self) -> None:
        for index, group in enumerate(self.param_groups):
            options.check_changed(group, self._checked, index)
            for i, p in enumerate(group["params"]):
                if p.grad is not None:
                    options.check_gradient(p, group, index, i)
        for cohort in self._cohorts:
            options.check_layouts([(p, b.layout) for b in cohort.bundles for p in b.params], self.param_groups)
            if cohort.group_index >= len(self.param_groups):
                continue  # a group that was taken out
            group = self.param_groups[cohort.group_index]
            if cohort.structure != structure(group):
                changed = [
                    n for n, was, now in zip(STRUCTURAL, cohort.structure, structure(group), strict=True) if was != now
                ]
                raise RuntimeError(
                    f"{', '.join(changed)} of param group {cohort.group_index} changed after its state was made: "
                    "set it back, or build a new optimizer"
                )
        capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
        if capturing and not all(g["capturable"] for g in self.param_groups):
            raise RuntimeError("step() is being captured in a CUDA graph: build the optimizer with capturable=True")

    def _follow_groups(self) -> None:
        """Rearrange the stacks where the caller has moved or removed parameters, or reset the state of some."""
        home = {id(p): index for index, group in enumerate(self.param_groups) for p in group["params"]}
        settled = (
            bool(self.state.get(p)) and home.get(id(p)) == cohort.group_index
            for cohort in self._cohorts
            for p in cohort.params
        )
        arranged = (cohort.layout == layout(self.param_groups[cohort.group_index]) for cohort in self._cohorts)
        if not all(settled) or not all(arranged):
            self._adopt({p: state for p, state in self.state.items() if state})

    def _admit(self) -> None:
        """Make state for parameters that have their first gradient; a group and device remain one cohort."""
        for index, group in enumerate(self.param_groups):
            fresh: defaultdict[torch.device, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None and p.numel() and not self.state.get(p):
                    fresh[p.device].append(p)
            for device, params in fresh.items():
                there = {id(p) for c in self._cohorts if (c.group_index, c.device) == (index, device) for p in c.params}
                if there:
                    new = Cohort(index, group, params).views()
                    self._adopt({p: state for p, state in self.state.items() if state} | new)
                else:
                    self._add_cohort(Cohort(index, group, params))

    def _add_cohort(self, cohort: Cohort) -> None:
        self._cohorts.append(cohort)
        self.state.update(cohort.views())

    # --- state: views into the stacks inside, tensors that own their memory outside ---

    def state_dict(self) -> dict[str, Any]:
        """As torch's, with tensors that own their memory: per parameter, without a trace of how they were stacked."""
        packed = super().state_dict()
        packed["state"] = {key: _owned(value) for key, value in packed["state"].items()}
        return packed

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; dtypes and devices of the state are kept right, and a failed call changes nothing.

        Raises:
            ValueError: groups that do not match, a state of another layout or version.
        """
        seen: dict[str, Any] = {}

        def look(_: torch.optim.Optimizer, final: dict[str, Any]) -> None:
            options.check_saved_groups(final, self.param_groups)
            seen["state"] = {}
            for index, (theirs, mine) in enumerate(zip(final["param_groups"], self.param_groups, strict=True)):
                for i, p, name in zip(theirs["params"], mine["params"], options.names(mine, index), strict=True):
                    saved = final["state"].get(i)
                    if saved:
                        layout = Cohort(index, {**self.defaults, **theirs}, [torch.empty_like(p, device="meta")])
                        options.check_saved_state(name, saved, next(iter(layout.views().values())))
                        seen["state"][p] = saved

        handle = self.register_load_state_dict_pre_hook(look)  # the last hook sees what the others made
        try:
            self._incoming = seen
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
            del self._incoming

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        return {**state, "state": {p: _owned(value) for p, value in self.state.items()}}

    @torch.no_grad()
    def __setstate__(self, state: dict[str, Any]) -> None:
        incoming = self.__dict__.get("_incoming", {}).get("state", state["state"])
        self._checked = {}
        before = self.__dict__.get("param_groups", [])
        super().__setstate__({**state, "state": defaultdict(dict)})
        for group, mine in zip_longest(self.param_groups, before, fillvalue=self.defaults):
            for name in self.defaults:  # a checkpoint of an earlier version lacks the options that came later
                if name != "differentiable":  # torch adds it to the defaults of what it unpickles or loads
                    group.setdefault(name, mine.get(name, self.defaults[name]))
        self._adopt(incoming)

    def _adopt(self, incoming: dict[Tensor, dict[str, Any]]) -> None:
        """Take over a state: into the stacks that are there where they fit, so that addresses stay; else into new."""
        wanted: defaultdict[tuple[int, torch.device], list[Tensor]] = defaultdict(list)
        for index, group in enumerate(self.param_groups):
            for p in group["params"]:
                if incoming.get(p):
                    wanted[index, p.device].append(p)
        there = {(c.group_index, *map(id, c.params)): c for c in self.__dict__.get("_cohorts", ())}
        self._cohorts = []
        for (index, _), params in wanted.items():
            group = self.param_groups[index]
            cohort = there.get((index, *map(id, params)))
            if cohort is None or (cohort.structure, cohort.layout) != (structure(group), layout(group)):
                cohort = Cohort(index, group, params)
            cohort.set_steps({p: int(incoming[p]["step"]) for p in params})
            self._add_cohort(cohort)
            for p in params:
                for name, view in self.state[p].items():
                    if isinstance(view, Tensor):
                        view.copy_(incoming[p][name])


def _owned(state: dict[str, Any]) -> dict[str, Any]:
    return {name: v.detach().clone() if isinstance(v, Tensor) else v for name, v in state.items()}
