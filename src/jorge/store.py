"""The owner of the state: who holds which tensor of it, and the count of steps.

`optimizer.state[p]` *is* the state. Its tensors are views into the stacks and shape groups of
:mod:`jorge.arrange`; nothing else holds these, so what a caller lets go is freed. Before each step :meth:`Store.begin`
looks whether the entries are as they were left. Where they are not — tensors were replaced or moved, entries cleared,
options changed, parameters added or taken out — the state is arranged anew from what the entries hold now, or the call
is refused before anything has changed.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from jorge.allocation import Address, Constants, SetState, allocate
from jorge.arrange import ParamSpec, ShapeGroup, WorkSet, arrange
from jorge.compiling import CompiledSteps
from jorge.exchange.checkpoints import Saver, SaverOfParts, whole
from jorge.exchange.domains import Distribution, Domain, is_sharded, local, local_gradient
from jorge.exchange.owned import Owned
from jorge.exchange.staggering import Places, placed
from jorge.grafting import buffer_names
from jorge.graphs import RECORDERS, Graphs
from jorge.options import ARRANGING, SHAPING, Group, Options
from jorge.routing import layout
from jorge.shards import Segment
from jorge.validation import bad_gradient, check_own, check_sharded_alike, check_state, check_step, name_of, names

Entry = dict[str, Any]


@dataclass
class GroupState:
    """The state of the parameters of one param group on one device, as it is arranged.

    Args:
        index: of the param group.
        params: in the group's order; their number here is their *place*.
        options: those that it was arranged by.
        distribution: where the processes are found that work together.
        domain: those of its parameters.
        work_sets: what is worked on together.
        places: of each place, where its refreshes lie in those of the whole group, where these are staggered and
            arranged apart.
        entries: of each place, its entry of `optimizer.state`.
        grouped: the parameters of each shape group of each work set.

    What a step that has begun works on, `None` where a parameter has no gradient:

        grads: of each shape group of each work set.
        steps: of each place, its number from 1.
        alike: the gradients that there are, by dtype.
        tensors: of each work set.
    """

    index: int
    params: list[Tensor]
    options: Options
    distribution: Distribution
    domain: Domain
    work_sets: tuple[WorkSet, ...] = ()
    entries: list[Entry] = field(default_factory=list)
    grouped: list[list[list[Tensor]]] = field(default_factory=list)
    grads: list[list[list[Tensor | None]]] = field(default_factory=list)
    steps: list[int | None] = field(default_factory=list)
    alike: dict[torch.dtype, list[Tensor]] = field(default_factory=dict)
    tensors: list[SetState[Tensor]] = field(default_factory=list)
    places: tuple[Places, ...] | None = None
    _addresses: list[SetState[Address]] = field(default_factory=list)
    _kept: list[tuple[tuple[str, weakref.ref[Tensor], int | None], ...]] = field(default_factory=list)
    _sizes: list[int] = field(default_factory=list)
    _slots: list[tuple[list[Tensor | None], int]] = field(default_factory=list)
    _rooms: list[tuple[list[Tensor], int]] = field(default_factory=list)
    _segments: dict[int, list[tuple[list[Tensor | None], list[Tensor], int, Segment]]] = field(default_factory=dict)
    _seen: int = 0
    _given: int = 0

    def __post_init__(self) -> None:
        self.device = self.params[0].device
        self.exchange = self.distribution.exchange(self.domain, self.device)
        self._unlike = self.distribution.alike is False
        self.shapes = [tuple(p.shape) for p in self.params]
        if self.domain.kind == "parts":  # what is here of a parameter is worked on like one that is whole
            self.specs = [ParamSpec(tuple(local(p).shape), p.dtype) for p in self.params]
        else:
            shards = [self.distribution.shards(p, self.domain) for p in self.params]
            self.specs = [
                ParamSpec(*each) for each in zip(self.shapes, (p.dtype for p in self.params), shards, strict=True)
            ]
        arranged = arrange(self.specs, self.options, on_cuda=self.device.type == "cuda")
        self.work_sets = self.exchange.settle(arranged, self.options)
        if self.places is not None:
            self.work_sets = placed(self.work_sets, self.places)
        wide = torch.float64 if any(p.dtype == torch.float64 for p in self.params) else torch.float32
        self.constants = Constants(self.device)
        slots: dict[int, tuple[list[Tensor | None], int]] = {}
        rooms: dict[int, tuple[list[Tensor], int]] = {}
        for work in self.work_sets:
            self.grouped.append([[local(self.params[place]) for place in group.places] for group in work.groups])
            self.grads.append([[None] * len(group.places) for group in work.groups])
            for group, mine, some in zip(work.groups, self.grads[-1], self.grouped[-1], strict=True):
                slots.update((place, (mine, i)) for i, place in enumerate(group.places))
                rooms.update((place, (some, i)) for i, place in enumerate(group.places))
                if group.segment is not None:
                    for i, place in enumerate(group.places):
                        self._segments.setdefault(place, []).append((mine, some, i, group.segment))
        self._slots = [slots[place] for place in range(len(self.params))]
        self._rooms = [rooms[place] for place in range(len(self.params))]
        self.compiled = CompiledSteps(self.device, wide) if self.options.compile_step else None
        has_graphs = self.options.cuda_graphs and self.device.type in RECORDERS
        self.graphs = Graphs(self.device, wide) if has_graphs else None

    # --- the state's tensors ------------------------------------------------------------------------------------------

    def allocate(self) -> list[Entry]:
        """New tensors in their state before any gradient; for each place its views of them, by key."""
        views: list[Entry] = [{} for _ in self.params]
        self._addresses = []
        for work in self.work_sets:
            addresses, made = allocate(work, self.options, self.device)
            self._addresses.append(addresses)
            for place, key, view in made:
                views[place][key] = view
        return views

    def keep(self, entries: Sequence[Entry]) -> None:
        """Remember the entries that hold the views, to see later whether they still do."""
        self.entries = list(entries)
        self._sizes = list(map(len, entries))
        self._kept = []
        for place, entry in enumerate(entries):
            keys = self.keys(place)
            self._kept.append(tuple((k, weakref.ref(v), _pointer(v)) for k, v in entry.items() if k in keys))

    def keys(self, place: int) -> Mapping[str, Any]:
        """The keys of a parameter's tensors, with shape and dtype."""
        spec = self.specs[place]
        return layout(spec.shape, spec.dtype, self.options).tensors(spec.shape)

    @property
    def is_apart(self) -> bool:
        """Whether parts of its state lie in other processes."""
        return self.domain.kind in ("shard", "parts")

    def _saver(self, place: int) -> Saver | SaverOfParts:
        p, exchange = self.params[place], self.exchange
        if isinstance(exchange, Owned):
            return Saver(exchange, self.work_sets, place, p, self.specs[place])
        return SaverOfParts(p, self.specs[place].shape)

    def holds(self, place: int, entry: Entry) -> bool:
        """Whether a parameter's entry holds the views that it was left with."""
        return entry is self.entries[place] and all(entry.get(k) is view() for k, view, _ in self._kept[place])

    def saved(self, place: int, *, in_chunks: bool) -> Entry:
        """A parameter's entry in the form of a checkpoint; all processes have to ask.

        Args:
            place: of the parameter.
            in_chunks: whether preconditioners are sharded, or whole in each process.
        """
        saver, shape = self._saver(place), self.shapes[place]
        keys = layout(shape, self.specs[place].dtype, self.options).tensors(shape)
        return {
            name: saver.saved(name, value, keys[name][0], in_chunks=in_chunks) if name in keys else value
            for name, value in self.entries[place].items()
        }

    def write(self, place: int, name: str, view: Tensor, value: Tensor) -> None:
        """Take a tensor over into the state: a whole one, or one as in a checkpoint; all processes have to."""
        found = self._saver(place).mine(name, value) if self.is_apart else whole(value)
        view.copy_(found.view(view.shape))

    def gather_tensors(self) -> None:
        """Find the tensors that the views in the entries are views of: `tensors`, of each work set."""

        def whole(addresses: Mapping[str, Address]) -> dict[str, Tensor]:
            return {name: self.entries[place][key]._base for name, (place, key) in addresses.items()}

        self.tensors = [
            SetState([whole(each) for each in a.buffers], whole(a.scalars), [whole(each) for each in a.stacks])
            for a in self._addresses
        ]
        for work, tensors in zip(self.work_sets, self.tensors, strict=True) if self._segments else ():
            for i, group in enumerate(work.groups):
                if group.segment is not None:
                    tensors.buffers[i] = {k: _of_segment(group, k, base) for k, base in tensors.buffers[i].items()}

    def let_go(self) -> None:
        """Hold no tensor of the state and no gradient any more: they are the entries' and the parameters'."""
        self.tensors, self.alike = [], {}
        for groups in self.grads:
            for grads in groups:
                grads[:] = [None] * len(grads)

    # --- a step -------------------------------------------------------------------------------------------------------

    def fits(self, options: Options, distribution: Distribution) -> bool:
        """Whether it is arranged as these options want it, for these processes."""
        mine = self.options
        if mine is not options and any(getattr(mine, n) != getattr(options, n) for n in SHAPING + ARRANGING):
            return False
        return self.distribution is distribution and self._unlike == (distribution.alike is False)

    def begin(self) -> None:
        """Forget the last step's gradients."""
        self.let_go()
        self.steps, self._seen, self._given = [None] * len(self.params), 0, 0

    def note(self, place: int, p: Tensor, grad: Tensor | None, entry: Entry | None) -> bool:
        """Note a parameter's gradient and step; false where its entry is not as it was left.

        So it is, too, where it has another number of keys: new ones of its owner's are looked at once.
        """
        if entry is None or entry is not self.entries[place] or len(entry) != self._sizes[place]:
            return False
        for key, kept, pointer in self._kept[place]:
            view = kept()
            found: Any = entry.get(key)
            if view is None or found is not view:
                return False
            if pointer is not None and view.data_ptr() != pointer:  # `view.data` was set
                return False
        spec, step = self.specs[place], entry.get("step")
        if p.shape != self.shapes[place] or p.dtype != spec.dtype or p.device != self.device:
            return False
        if type(step) is not int or step < 0:
            return False
        self._seen += 1
        if grad is not None:
            self._given += 1
            self.steps[place] = step + 1
            slot, i = self._slots[place]
            slot[i] = grad
            if self.domain.kind in ("shard", "parts"):  # what a wrapper has moved or gathered meanwhile lies elsewhere
                room, i = self._rooms[place]
                room[i] = held = local(p)
                for grads, params, i, segment in self._segments.get(place, ()):
                    grads[i], params[i] = segment.of(grad), segment.of(held)
            if grad.dtype in self.alike:
                self.alike[grad.dtype].append(grad)
            else:
                self.alike[grad.dtype] = [grad]
        return True

    @property
    def everyone(self) -> bool:
        """Whether all of its parameters have a gradient."""
        return self._given == len(self.params)

    def mask(self, group: ShapeGroup, present: Sequence[bool]) -> Tensor:
        """Which parts of a shape group have a gradient, on the device, `[count, 1, …]`."""
        flags = tuple(has for has in present for _ in range(group.parts))
        return self.constants.get(flags).view(-1, *(1,) * len(group.part))

    @property
    def complete(self) -> bool:
        """Whether all of its parameters were seen since :meth:`begin`."""
        return self._seen == len(self.params)

    def commit(self, work: WorkSet) -> None:
        """Advance the counters of the parameters that a work set has moved."""
        for group in work.groups:
            for place in group.places:
                step = self.steps[place]
                if step is not None:
                    self.entries[place]["step"] = step


def _of_segment(group: ShapeGroup, name: str, tensor: Tensor) -> Tensor:
    """Of a tensor of the state of parameters that hold several matrices what is of a group's matrix."""
    assert group.segment is not None
    if name in ("row_var", "col_var"):
        return tensor.view(len(group.places), -1, tensor.shape[-1])[:, group.segment.number]
    return group.segment.of(tensor)


def unmade_in_a_capture() -> RuntimeError:
    """The error for a captured step for which something would have to be made."""
    return RuntimeError(
        "step() is being captured in a CUDA graph, each replay of which would make the state anew: take a step with a "
        "gradient for every parameter before the capture, and again after what changes the state or the options"
    )


class Store:
    """The state of an optimizer: what of it is arranged together, and where each parameter is."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, torch.device, Domain], GroupState] = {}
        self._homes: dict[Tensor, tuple[GroupState, int]] = {}

    def begin(
        self,
        groups: Sequence[Group],
        options: Sequence[Options],
        distribution: Distribution,
        state: MutableMapping[Any, Any],
        *,
        frozen: bool = False,
        fresh: bool = True,
    ) -> list[GroupState]:
        """Look at every parameter once, arrange the state anew where that is needed, and say who takes the step.

        Args:
            groups: the optimizer's.
            options: of each.
            distribution: the optimizer's.
            state: `optimizer.state`.
            frozen: whether the state has to be arranged as it is: the step is being captured in a CUDA graph.
            fresh: whether parameters that have their first gradient get a state.

        Raises:
            RuntimeError: a gradient or an entry of the state cannot be used, or the state would be arranged anew though
                it is frozen; nothing has changed then.
        """
        try:
            if not self._look(groups, options, distribution, state, fresh=fresh):
                if frozen:
                    raise unmade_in_a_capture()
                self._arrange(groups, options, distribution, state, fresh=fresh)
                settled = self._look(groups, options, distribution, state, fresh=fresh)
                assert settled, "the state is not as it was just arranged"
        except BaseException:
            for each in self._groups.values():
                each.let_go()
            raise
        found = []
        for each in self._groups.values():
            if each.alike:
                each.gather_tensors()
                found.append(each)
        return found

    def _look(
        self,
        groups: Sequence[Group],
        options: Sequence[Options],
        distribution: Distribution,
        state: Mapping[Any, Any],
        *,
        fresh: bool = True,
    ) -> bool:
        """Note gradients and steps; whether the state is as it was left and has all that the step needs."""
        settled = True
        for each in self._groups.values():
            each.begin()
            settled = settled and each.index < len(groups) and each.fits(options[each.index], distribution)
        homes = self._homes
        for index, group in enumerate(groups):
            for place_in_group, p in enumerate(group["params"]):
                grad, home = p.grad, homes.get(p)
                if type(grad) is not Tensor and grad is not None:  # a subclass: one look more
                    check_sharded_alike(p, names(group, index)[place_in_group])
                if grad is not None and (
                    grad.shape != p.shape
                    or grad.device != p.device
                    or grad.layout != torch.strided
                    or grad.is_complex()
                ):
                    raise bad_gradient(p, grad, names(group, index)[place_in_group])
                if type(grad) is not Tensor and grad is not None and is_sharded(p):
                    grad = local_gradient(p, grad)
                if home is not None:
                    settled = home[0].index == index and home[0].note(home[1], p, grad, state.get(p)) and settled
                elif (fresh and grad is not None and p.numel()) or _has_state(state.get(p), options[index]):
                    settled = False
        for each in self._groups.values():
            settled = settled and each.complete
        return settled

    def _arrange(
        self,
        groups: Sequence[Group],
        options: Sequence[Options],
        distribution: Distribution,
        state: MutableMapping[Any, Any],
        *,
        fresh: bool = True,
    ) -> None:
        """Arrange what the entries hold, with new state for parameters that have their first gradient."""
        wanted: defaultdict[tuple[int, torch.device, Domain], list[Tensor]] = defaultdict(list)
        given: dict[Tensor, Entry] = {}
        apart: dict[Tensor, Entry] = {}
        owners: dict[int, str] = {}
        new: list[tuple[GroupState, list[Entry]]] = []
        for index, group in enumerate(groups):
            for p, name in zip(group["params"], names(group, index), strict=True):
                entry = state.get(p)
                if entry is None and p.grad is None:
                    continue
                self._check_unchanged(p, entry, index, options[index], groups)
                keys = layout(tuple(p.shape), p.dtype, options[index]).tensors(tuple(p.shape))
                if self._is_apart(p, entry):
                    given[p] = apart[p] = entry or {}
                elif entry is not None and check_state(
                    name, entry, keys, had_state=p in self._homes, on_meta=p.is_meta
                ):
                    given[p] = entry
                if p in given or (fresh and p.grad is not None and keys):
                    wanted[index, p.device, distribution.domain(p, name, options[index])].append(p)
                    check_own(name, entry, owners)
        arranged: dict[tuple[int, torch.device, Domain], GroupState] = {}
        spread = distribution.spread(wanted, groups, options)
        for key, params in wanted.items():
            was, spots = self._groups.get(key), spread.get(key)
            kept = was is not None and was.places == spots and was.fits(options[key[0]], distribution)
            if was is not None and kept and self._is_whole(was, params, state):
                arranged[key] = was
                continue
            made = GroupState(key[0], params, options[key[0]], distribution, key[2], places=spots)
            for p in params:
                if p in apart:
                    home, place = self._homes[p]
                    given[p] = home.saved(place, in_chunks=is_sharded(p))
            with torch.inference_mode(False), torch.no_grad():  # what is made in inference mode has no views
                views = made.allocate()
                for place, (p, view) in enumerate(zip(params, views, strict=True)):
                    for name, tensor in view.items() if p in given else ():
                        made.write(place, name, tensor, given[p][name])
            arranged[key] = made
            new.append((made, views))
        # All that can fail is done: from here on entries change.
        for made, views in new:
            for p, view in zip(made.params, views, strict=True):
                entry = state.get(p)
                if entry is None:
                    state[p] = entry = {}
                entry.update(view, step=check_step("a parameter", entry.get("step", 0)))
            made.keep([state[p] for p in made.params])
        self._groups = arranged
        self._homes = {p: (each, place) for each in arranged.values() for place, p in enumerate(each.params)}

    def _is_apart(self, p: Tensor, entry: Entry | None) -> bool:
        """Whether an entry is as it was left and a part of what it holds lies in other processes."""
        home = self._homes.get(p)
        return home is not None and isinstance(entry, dict) and home[0].is_apart and home[0].holds(home[1], entry)

    @property
    def is_used(self) -> bool:
        """Whether it holds the state of any parameter."""
        return bool(self._homes)

    @property
    def is_apart(self) -> bool:
        """Whether parts of the state lie in other processes."""
        return any(each.is_apart for each in self._groups.values())

    def release(self) -> None:
        """Give back all captured graphs."""
        for each in self._groups.values():
            if each.graphs is not None:
                each.graphs.release()

    def saved(self, state: Mapping[Any, Any]) -> dict[Tensor, Entry]:
        """The entries of parameters whose state lies in several processes, in the form of a checkpoint.

        All processes have to ask.
        """
        homes = ((p, home) for p, home in self._homes.items() if home[0].is_apart and isinstance(state.get(p), dict))
        return {p: mine.saved(place, in_chunks=True) for p, (mine, place) in homes if mine.holds(place, state[p])}

    def _is_whole(self, was: GroupState, params: Sequence[Tensor], state: Mapping[Any, Any]) -> bool:
        """Whether a group's state is of just these parameters, and as it was left."""
        if len(was.params) != len(params) or any(p is not q for p, q in zip(was.params, params, strict=True)):
            return False
        if any(state.get(p) is not entry for p, entry in zip(params, was.entries, strict=True)):
            return False
        was.begin()
        sizes, was._sizes = was._sizes, list(map(len, was.entries))  # what else there is has been checked
        whole = all(was.note(place, p, p.grad, state.get(p)) for place, p in enumerate(params))
        was._sizes = was._sizes if whole else sizes
        return whole

    def _check_unchanged(
        self, p: Tensor, entry: Entry | None, index: int, options: Options, groups: Sequence[Group]
    ) -> None:
        """Refuse a state whose parameter, or whose group's options, are no longer those that it was made for."""
        home = self._homes.get(p)
        if home is None or not _has_state(entry, home[0].options):
            return
        mine, place = home
        spec, shape = mine.specs[place], mine.shapes[place]
        if tuple(p.shape) != shape or p.dtype != spec.dtype:
            converted = "optimizer.load_state_dict(optimizer.state_dict()) converts the states of all; or "
            raise RuntimeError(
                f"{name_of(p, groups)} is now {tuple(p.shape)} of {p.dtype}, its state is for {shape} of "
                f"{spec.dtype}: {converted if tuple(p.shape) == shape else ''}build a new optimizer, or delete "
                "optimizer.state[p]"
            )
        changed = [name for name in SHAPING if getattr(mine.options, name) != getattr(options, name)]
        if changed and mine.index == index:
            raise RuntimeError(
                f"{', '.join(changed)} of param group {index} changed after its state was made: set it back, or build "
                "a new optimizer"
            )
        if changed:
            raise RuntimeError(
                f"{name_of(p, groups)} has a state that was made with other values of {', '.join(changed)} than those "
                f"of param group {index}: give the group the same, or delete optimizer.state[p]"
            )

    def load(
        self,
        incoming: Mapping[Any, Any],
        groups: Sequence[Group],
        options: Sequence[Options],
        distribution: Distribution,
        state: MutableMapping[Any, Any],
    ) -> None:
        """Take over a checked state: into the tensors that are there where they fit, so that addresses stay."""
        for key in [key for key in state if key not in incoming]:
            del state[key]
        for p, entry in incoming.items():
            home = self._homes.get(p) if isinstance(p, Tensor) else None
            held = state.get(p)
            fits = home is not None and held is not None and home[0].fits(options[home[0].index], distribution)
            if home is None or held is None or not fits or not self._is_held(home, p, held, entry):
                self._homes.pop(p, None)  # what it held is not asked any more
                state[p] = dict(entry) if isinstance(entry, dict) else entry
                continue
            mine, place = home
            views = mine.keys(place)
            for name in views:
                mine.write(place, name, held[name], entry[name])
            for name in [name for name in held if name not in views]:
                del held[name]
            held.update((name, value) for name, value in entry.items() if name not in views)
            held["step"] = check_step("a parameter", held["step"])
        self._arrange(groups, options, distribution, state)

    def _is_held(self, home: tuple[GroupState, int], p: Tensor, held: Entry, entry: Entry) -> bool:
        """Whether a parameter's entry is as it was left, and another one has all that it has."""
        mine, place = home
        mine.begin()
        return mine.note(place, p, None, held) and all(key in entry for key in mine.keys(place))


def _pointer(tensor: Tensor) -> int | None:
    """Where a tensor lies, to see whether its `data` was set; `None` where that cannot be asked."""
    return tensor.data_ptr() if type(tensor) is Tensor else None


def _has_state(entry: Any, options: Options) -> bool:
    """Whether an entry holds a state of ours: every parameter's has the graft's first buffer."""
    return isinstance(entry, dict) and buffer_names(options.grafting)[0] in entry
