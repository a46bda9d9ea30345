"""Which processes work together on a parameter: found from the parameter itself, or from the default process group."""

from __future__ import annotations

import hashlib
import platform
import struct
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from jorge.arrange import ParamSpec
from jorge.exchange import Alone, Apart, Exchange
from jorge.exchange.owned import Owned
from jorge.exchange.rates import Rates, rates
from jorge.exchange.replicated import Replicated
from jorge.exchange.staggering import Places, places, shared
from jorge.exchange.transport import Transport
from jorge.naming import names
from jorge.options import Group, Options
from jorge.routing import route_by
from jorge.shards import Shards, boxes

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

#: How work is shared: by what is found, all of the state in every process, each preconditioner in one, or not at all.
Mode = Literal["auto", "replicate", "shard"] | None
MODES = ("auto", "replicate", "shard", None)
#: In which directions can be sent back from owners.
SENT_DTYPES = (None, torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True)
class Domain:
    """Processes that work together, and how.

    Args:
        kind: `"replicate"` or `"shard"`; `"parts"` where each process holds matrices of its own of a parameter;
            `"alone"` where there are no others.
        ranks: theirs in the whole job, in the order of the process group.
    """

    kind: Literal["alone", "replicate", "shard", "parts"]
    ranks: tuple[int, ...] = ()


ALONE = Domain("alone")
#: What is arranged together: the parameters of a param group, on a device, of a domain.
Arrangement = tuple[int, torch.device, Domain]
#: Of meshes of several dims, by ranks; gone with torch's default group.
_GROUPS: WeakKeyDictionary[dist.ProcessGroup, dict[tuple[int, ...], dist.ProcessGroup]] = WeakKeyDictionary()
#: Whole numbers of the size of a dtype, by that in bytes.
_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Arranged(Protocol):
    """What is looked at of the state of some parameters."""

    device: torch.device
    domain: Domain


class Distribution:
    """Finds the domain of each parameter, and makes the exchange of a domain.

    Args:
        mode: how plain tensors are shared, which are the same in all processes; sharded ones always have owners.
        group: of the processes that hold the same plain tensors; `None` is torch's default group, if there is one.
        dtype: in which directions are sent back from owners, lower than that of the arithmetic; `None` is the latter.

    Raises:
        ValueError: an unknown mode; a group where the mode is `None`; a dtype that no direction can be sent in.
    """

    def __init__(
        self, mode: Mode = "auto", group: dist.ProcessGroup | None = None, dtype: torch.dtype | None = None
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"distributed must be one of {', '.join(map(repr, MODES))}, got {mode!r}")
        if dtype not in SENT_DTYPES:
            raise ValueError(f"communication_dtype must be one of {', '.join(map(str, SENT_DTYPES))}, got {dtype!r}")
        if mode is None and group is not None:
            raise ValueError("process_group is given and distributed=None turns it off: give one of them")
        self.mode, self.group, self.dtype = mode, group, dtype
        self._transports: dict[tuple[int, ...], Transport] = {}
        self._meshes: dict[Any, tuple[int, ...]] = {}
        #: Whether plain tensors are the same in all processes, each of which else works alone; `None` before the look.
        self.alike: bool | None = None
        self._near = False

    def domain(self, p: Tensor, name: str, options: Options) -> Domain:
        """Of a parameter.

        Raises:
            ValueError: it is sharded, and an option of its group cannot be had with that.
        """
        if is_sharded(p):
            if options.alone:
                which = next(name for name in ("compile_step", "capturable", "cuda_graphs") if getattr(options, name))
                raise ValueError(f"{name} is a DTensor, whose step waits for other processes: leave {which} out")
            return Domain("parts" if _in_whole_matrices(p, options) else "shard", self._of_mesh(p))
        if self.mode is None or self.alike is False or options.alone:
            return ALONE
        group = self._plain_group()
        if group is None or dist.get_world_size(group) == 1:
            return ALONE
        ranks = tuple(dist.get_process_group_ranks(group))
        self._transports.setdefault(ranks, Transport(group))
        return Domain("shard" if self.mode == "shard" else "replicate", ranks)

    def _plain_group(self) -> dist.ProcessGroup | None:
        if self.group is not None:
            return self.group
        if dist.is_available() and dist.is_initialized():
            return dist.group.WORLD
        return None

    def _of_mesh(self, p: Any) -> tuple[int, ...]:
        mesh = p.device_mesh
        if mesh in self._meshes:  # asked for in each step, of each parameter
            return self._meshes[mesh]
        self._meshes[mesh] = ranks = tuple(mesh.mesh.flatten().tolist())
        if ranks not in self._transports:
            if mesh.ndim == 1:
                group = mesh.get_group()
            elif len(ranks) == dist.get_world_size():
                group = dist.group.WORLD
            else:
                # Not torch's `_flatten`, in which all processes of the job have to take part: that stage of a pipeline
                # may never step.
                made = _GROUPS.setdefault(_world(), {})
                if ranks not in made:
                    made[ranks] = dist.new_group(sorted(ranks), use_local_synchronization=True)
                group = made[ranks]
            self._transports[ranks] = Transport(group)
        return ranks

    def of_mesh(self, p: Tensor) -> Transport:
        """To the processes of a DTensor's mesh."""
        return self._transports[self._of_mesh(p)]

    def shares(self, p: Tensor, options: Options) -> tuple[float, float]:
        """About which part of what is like a parameter is held here, and which part of its preconditioners."""
        if not is_sharded(p):
            domain = self.domain(p, "", options)
            return 1.0, 1 / len(domain.ranks) if domain.kind == "shard" else 1.0
        held = local(p).numel() / max(1, p.numel())
        return held, held if _in_whole_matrices(p, options) else 1 / self.of_mesh(p).size

    def work_alone(self, alone: bool) -> None:
        """Let each process work alone while others take no steps, or look for replicas anew at the next step."""
        self.alike = False if alone else None

    def shards(self, p: Tensor, domain: Domain) -> Shards | None:
        """What each process holds of a parameter; `None` where all hold all of it."""
        return shards_of(p, self.transport(domain)) if is_sharded(p) else None

    def speaks(self, p: Tensor, domain: Domain) -> bool:
        """Whether this process is the first of those that hold what it holds of a parameter."""
        shards = self.shards(p, domain)
        return self.transport(domain).rank == 0 if shards is None else shards.speaks

    def spread(
        self, wanted: Mapping[Arrangement, Sequence[Tensor]], groups: Sequence[Group], options: Sequence[Options]
    ) -> dict[Arrangement, tuple[Places, ...]]:
        """Where refreshes lie in those of all parameters of a group on a device, where they are staggered and these are
        arranged apart.
        """
        found: dict[Arrangement, tuple[Places, ...]] = {}
        for index, device in dict.fromkeys((index, device) for index, device, _ in wanted):
            mine = {key: params for key, params in wanted.items() if key[:2] == (index, device)}
            if not options[index].stagger or (len(mine) == 1 and next(iter(mine))[2].kind != "parts"):
                continue
            chosen = {p for params in mine.values() for p in params}
            ordered = [p for p in groups[index]["params"] if p in chosen]
            specs = [ParamSpec(tuple(p.shape), p.dtype) for p in ordered]
            whole = places(specs, options[index], on_cuda=device.type == "cuda")
            spots = dict(zip(ordered, whole, strict=True))
            for key, params in mine.items():
                found[key] = tuple(self._here(p, spots[p], key[2]) for p in params)
        return found

    def _here(self, p: Tensor, spots: Places, domain: Domain) -> Places:
        """Those of what each process has to itself of a parameter."""
        if domain.kind != "parts":
            return spots
        held = shards_of(p, self.transport(domain))
        box = held.boxes[held.rank]
        return shared(spots, box.offset[0], box.size[0], p.shape[0])

    def transport(self, domain: Domain) -> Transport:
        """To the processes of a domain."""
        return self._transports[domain.ranks]

    @property
    def is_debugged(self) -> bool:
        """Whether `TORCH_DISTRIBUTED_DEBUG=DETAIL` asks for the replicas to be compared after each step."""
        return self.mode is not None and dist.get_debug_level() == dist.DebugLevel.DETAIL  # type: ignore[attr-defined]

    def different(self, groups: Sequence[Group]) -> list[str]:
        """The names of parameters, or of parts of them, that are not the same to the bit in all that hold them."""
        found = []
        for index, group in enumerate(groups):
            for p, name in zip(group["params"], names(group, index), strict=True):
                plain = None if is_sharded(p) else self._plain_group()
                if plain is None and not is_sharded(p):
                    continue
                ranks = self._of_mesh(p) if is_sharded(p) else tuple(dist.get_process_group_ranks(plain))
                transport = self._transports.setdefault(ranks, Transport(plain or _world()))
                mine = local(p).detach()
                # The sum of the bits, with weights so that an exchange shows; whole numbers have no order of addition.
                bits = mine.contiguous().view(-1).view(_INTEGERS[mine.element_size()]).long()
                weighted = bits * torch.arange(1, len(bits) + 1, device=bits.device)
                sums = transport.gather(weighted.sum().reshape(1)).wait().flatten().tolist()
                boxes_held = shards_of(p, transport).boxes if is_sharded(p) else (None,) * transport.size
                if len(set(zip(sums, boxes_held, strict=True))) != len(set(boxes_held)):
                    found.append(name)
        return found

    def transports(self) -> list[Transport]:
        """To all processes that were found so far, by group; they count what is sent."""
        return list(self._transports.values())

    def exchange(self, domain: Domain, device: torch.device) -> Exchange:
        """A new one for a param group's parameters of a domain."""
        if domain.kind == "alone":
            return Alone()
        if domain.kind == "parts":
            return Apart()
        transport = self.transport(domain)
        if domain.kind == "shard":
            return Owned(transport, device, self.dtype)

        def asked() -> Rates:
            return rates(device.type, near=self._near)

        return Replicated(transport, asked if self.mode == "auto" else None)

    def copied(self) -> tuple[Mode, None, torch.dtype | None]:
        """What a copy is made of. A process group is of this process alone: with one of its own, a copy works alone."""
        return self.mode if self.group is None else None, None, self.dtype

    @contextmanager
    def same_gradients(self, groups: Sequence[Group]) -> Iterator[None]:
        """Let all processes take the same steps, where some have a gradient that others lack; on CPUs, which may wait.

        A sharded parameter without a gradient here has one of zeros meanwhile.

        Raises:
            RuntimeError: of a parameter that all processes hold, some have a gradient and some have none.
        """
        lent: list[Tensor] = []
        plain = self._plain_group() if self.alike else None
        replicas = tuple(dist.get_process_group_ranks(plain)) if plain is not None else ()
        alike: dict[tuple[int, ...], list[tuple[Tensor, int, int]]] = {}
        for index, group in enumerate(groups):
            for i, p in enumerate(group["params"]):
                if p.is_cpu:
                    ranks = self._of_mesh(p) if is_sharded(p) else replicas
                    alike.setdefault(ranks, []).append((p, index, i))
        try:
            for ranks, mine in alike.items():
                if len(ranks) < 2:
                    continue
                given = torch.tensor([p.grad is not None for p, _, _ in mine], dtype=torch.int32)
                everywhere = self._transports[ranks].least(torch.cat([given, -given]))
                every, some = everywhere[: len(mine)], -everywhere[len(mine) :]
                for differing in (some != every).nonzero().flatten().tolist():
                    p, index, i = mine[differing]
                    if not is_sharded(p):
                        name = names(groups[index], index)[i]
                        raise RuntimeError(
                            f"{name} has a gradient in some processes and none in others: gradients have to be "
                            "averaged before a step, as DistributedDataParallel does"
                        )
                    if p.grad is None:
                        p.grad = torch.zeros_like(p)
                        lent.append(p)
            yield
        finally:
            for p in lent:
                p.grad = None

    def agreed(self, finite: Mapping[torch.device, Tensor], states: Sequence[Arranged]) -> dict[torch.device, Tensor]:
        """Whether all gradients are finite in all processes that work together, for each device."""
        found = dict(finite)
        asked = [each for each in dict.fromkeys((s.device, s.domain) for s in states) if each[1].kind != "alone"]
        for device, domain in asked * (2 if len(asked) > 1 else 1):  # what one has heard of the others it passes on
            found[device] = self.transport(domain).least(found[device].to(torch.int32)).bool()
        return found

    def check_replicas(self, groups: Sequence[Group], options: Sequence[Options]) -> None:
        """Look once whether plain tensors and their gradients are the same in all processes, to the bit.

        Where they are not and nobody has asked for it, each process goes on alone, with a warning.

        Raises:
            ValueError: they are not, and sharing was asked for.
        """
        if self.alike is not None or self.mode is None:
            return
        group = self._plain_group()
        if group is None or dist.get_world_size(group) == 1:
            return
        plain = [p for each in groups for p in each["params"] if not is_sharded(p)]
        if not plain or all(each.alone for each in options):
            return
        transport = self._transports.setdefault(tuple(dist.get_process_group_ranks(group)), Transport(group))
        device = plain[0].device
        seen = transport.gather(_fingerprint(plain, options).to(device)).wait().cpu()
        same = (seen == seen[0]).all(0).tolist()
        self.alike, self._near = all(same[:-1]), same[-1]
        if self.alike:
            return
        what = ("parameters or options", "weights", "gradients")
        differ = ", ".join(name for name, of in zip(what, seen.T[:-1], strict=True) if not bool((of == of[0]).all()))
        text = (
            f"the {differ} differ between the processes of the group: gradients have to be averaged before a step, as "
            "DistributedDataParallel does"
        )
        if self.mode != "auto" or self.group is not None:
            self.alike = None  # so that the next step is refused too
            raise ValueError(text + ". distributed=None lets each process work alone")
        warnings.warn(text + ". Each process works alone; distributed=None says so without a warning", stacklevel=6)


def _world() -> dist.ProcessGroup:
    """Torch's default group."""
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def is_sharded(p: Tensor) -> bool:
    """Whether `p` is a DTensor, without importing its module (half a second) where nobody has."""
    if type(p) is Tensor or type(p) is torch.nn.Parameter:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(p, module.DTensor)


def shards_of(p: Any, transport: Transport) -> Shards:
    """What each process holds of a DTensor, in the order of the group's ranks."""
    mesh = p.device_mesh
    found = boxes(tuple(p.shape), tuple(mesh.shape), p.placements)
    ranks = mesh.mesh.flatten().tolist()
    order = [ranks.index(rank) for rank in dist.get_process_group_ranks(transport.group)]
    return Shards(tuple(found[i] for i in order), transport.rank)


def check_placements(p: Any, name: str, options: Options) -> None:
    """Refuse a DTensor that cannot be optimized.

    Raises:
        TypeError: with the parameter's name, its mesh, its placements, and what to do.
    """
    where = f"{name} is a DTensor of shape {tuple(p.shape)} on {p.device_mesh} with {tuple(p.placements)}"
    try:
        found = route_by(tuple(p.shape), options)
        held = Shards(tuple(boxes(tuple(p.shape), tuple(p.device_mesh.shape), p.placements)), 0)
        if found.parts > 1:
            for number in range(found.parts):
                held.segment(number, tuple(p.shape), found.part)[0].matrices(found.part)
        elif found.blocking is not None:
            held.matrices(tuple(p.shape))
    except ValueError as error:
        raise TypeError(
            f"{where}: {error}. Shard it along dim 0, or the first dim of what it is read as columns, or replicate it"
        ) from None


def _in_whole_matrices(p: Any, options: Options) -> bool:
    """Whether a sharded parameter holds several matrices, and each process as many whole ones as the others."""
    if route_by(tuple(p.shape), options).parts == 1:
        return False
    held = boxes(tuple(p.shape), tuple(p.device_mesh.shape), p.placements)
    whole = all(box.size[1:] == tuple(p.shape[1:]) for box in held) and options.batch_dims > 0
    return whole and len({box.size[0] for box in held}) == 1


def local(p: Tensor) -> Tensor:
    """What is held here of a tensor."""
    if not is_sharded(p):
        return p
    given: Any = p
    found = given.to_local()
    mine: Tensor = found.wait() if hasattr(found, "wait") else found  # a collective may be on its way
    return mine


def local_gradient(p: DTensor, grad: DTensor) -> Tensor:
    """What is held here of a gradient, laid out as its parameter is."""
    if grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    return local(grad)


def _number(value: Any) -> Any:
    """An option's value with numbers for tensors, whose words would name their device."""
    if isinstance(value, tuple):
        return tuple(map(_number, value))
    return float(value) if isinstance(value, Tensor) else value


def _fingerprint(params: Sequence[Tensor], options: Sequence[Options]) -> Tensor:
    """Four whole numbers: of shapes and options, of weights, of gradients, and of the machine, `[4]`."""
    values = [[getattr(each, f.name) for f in fields(each)] for each in options]
    numbers = [list(map(_number, each)) for each in values]
    text = repr([(tuple(p.shape), str(p.dtype), p.grad is None) for p in params]) + repr(numbers)
    first, last = (struct.unpack("<q", hashlib.sha256(t.encode()).digest()[:8]) for t in (text, platform.node()))
    sums = [
        sum((t.detach().double().sum().cpu() for t in tensors if t is not None), torch.zeros((), dtype=torch.float64))
        for tensors in (list(params), [p.grad for p in params])
    ]
    return torch.cat([torch.tensor(first), torch.stack(sums).view(torch.int64), torch.tensor(last)])
