"""What every recipe runs in: processes, the loop, checkpoints."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from recipes.order import Batch, Collate, Drawn, Job, Order, moved, number
from recipes.settings import Recipe, optimizer_of


@contextmanager
def started(args: argparse.Namespace) -> Iterator[Job]:
    """This process's place in the job that torchrun has started, or alone; the seed is set."""
    device, together = torch.device(args.device), "WORLD_SIZE" in os.environ
    if together and device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if together:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        job = Job(*(dist.get_rank(), dist.get_world_size()) if together else (0, 1), device)
        parts = f"{job.size} processes × {args.accumulate} parts"
        if args.batch_size % (job.size * args.accumulate):
            raise SystemExit(f"--batch-size {args.batch_size} is no multiple of {parts}")
        if args.strategy == "fsdp" and args.amp == "float16":
            raise SystemExit("--amp float16 is not for fsdp, whose processes would scale apart: take bfloat16")
        torch.manual_seed(args.seed)  # the same weights everywhere
        yield job
    finally:
        if together:
            dist.destroy_process_group()


def spread(model: nn.Module, blocks: Iterable[nn.Module], args: argparse.Namespace, job: Job) -> nn.Module:
    """The model on the device: alone, as replicas, or with each block and the rest of it sharded."""
    model.to(job.device)
    sharded = args.strategy == "fsdp" and job.size > 1
    if args.channels_last and not sharded:  # sharded weights stay contiguous; convolutions go by their inputs
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if job.size == 1:
        return model
    if not sharded:
        return DistributedDataParallel(model, device_ids=[job.device] if job.device.type == "cuda" else None)
    for block in blocks:
        fully_shard(block)
    fully_shard(model)
    return model


def bare(model: nn.Module) -> nn.Module:
    """The model without what makes replicas of it."""
    return model.module if isinstance(model, DistributedDataParallel) else model


@dataclass
class Result:
    """What a training came to.

    Args:
        model: without what makes replicas of it.
        losses: means over `--log-every` steps.
        scores: of each evaluation, with its step.
        reached: the step at whose evaluation the target was reached; `None` if it was not, or there is none.
    """

    model: nn.Module
    losses: list[float] = field(default_factory=list)
    scores: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    reached: int | None = None


@dataclass
class Training:
    """A training: run it with :meth:`run`.

    Args:
        args: of :func:`parser`.
        job: this process's place.
        model: as :func:`spread` has made it.
        optimizer: over its parameters.
        scheduler: which counts steps.
        order: of the examples.
        total_steps: its length.
        loss: of the model on a batch.
        evaluate: what the model is worth, equal in all processes.
        clip: the largest norm of the gradient.
        target: whether scores are good enough to end.
    """

    args: argparse.Namespace
    job: Job
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LambdaLR
    order: Order
    total_steps: int
    loss: Callable[[nn.Module, Batch], Tensor]
    evaluate: Callable[[nn.Module], dict[str, float]]
    clip: float | None = None
    target: Callable[[dict[str, float]], bool] | None = None

    def run(self, data: Any, collate: Collate | None = None) -> Result:
        """Train to the end, or to `--stop-at`: take steps, say how it goes, save, evaluate."""
        args, job = self.args, self.job
        self.scaler = torch.amp.GradScaler(job.device.type, enabled=args.amp == "float16")
        self.writer = _writer(args) if args.tensorboard and job.rank == 0 else None
        result, first = Result(bare(self.model)), self._load() if args.resume else 0
        end = min(self.total_steps, args.stop_at or self.total_steps)
        loader = DataLoader(
            Drawn(data, args.seed),
            batch_sampler=self.order.of(job, first),
            collate_fn=collate,
            num_workers=args.workers,
            pin_memory=job.device.type == "cuda",
        )
        batches, sums, since = iter(loader), torch.zeros((), device=job.device), time.perf_counter()
        waited, said = 0.0, first
        for step in range(first + 1, end + 1):
            loss, waiting = self._step(step, batches)
            sums, waited = sums + loss, waited + waiting
            if step % args.log_every == 0:
                mean = (job.sum(sums) / job.size / (step - said)).item()
                result.losses.append(mean)
                passed, since = time.perf_counter() - since, time.perf_counter()
                speed, lr = (step - said) * args.batch_size / passed, float(self.scheduler.get_last_lr()[0])
                self._say(step, loss=mean, lr=lr, examples_per_second=speed, waiting_for_data=waited / passed)
                sums, waited, said = torch.zeros_like(sums), 0.0, step
            if step % (args.save_every or self.order.steps) == 0 or step == end:
                self._save(step)
            if step % (args.evaluate_every or self.order.steps) == 0 or step == end:
                scores = self._evaluated(step)
                result.scores.append((step, scores))
                since = time.perf_counter()
                if self.target is not None and self.target(scores):
                    result.reached = step
                    break
        if self.writer is not None:
            self.writer.close()
        return result

    def _step(self, step: int, batches: Iterator[Batch]) -> tuple[Tensor, float]:
        """One step: its loss, and the seconds that it waited for data."""
        args, job = self.args, self.job
        torch.manual_seed(number(args.seed, step, job.rank))
        self.optimizer.zero_grad()
        total, waited = torch.zeros((), device=job.device), 0.0
        for part in range(args.accumulate):
            before = time.perf_counter()
            batch = moved(next(batches), args, job.device)
            waited += time.perf_counter() - before
            with self._sums(part == args.accumulate - 1):
                with autocast(args, job.device):
                    loss = self.loss(self.model, batch) / args.accumulate
                self.scaler.scale(loss).backward()
            total += loss.detach()
        if self.clip is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        return total, waited

    def _sums(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are summed over processes at the last part of a step alone."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(last)
        elif isinstance(self.model, DistributedDataParallel) and not last:
            return self.model.no_sync()
        return nullcontext()

    def _evaluated(self, step: int) -> dict[str, float]:
        self._share_buffers()
        model = bare(self.model).eval()
        with torch.no_grad(), autocast(self.args, self.job.device):
            scores = self.evaluate(model)
        self.model.train()
        self._say(step, **scores)
        return scores

    def _say(self, step: int, **values: float) -> None:
        if self.job.rank:
            return
        print(f"step {step}/{self.total_steps}", *(f"{k} {v:.5g}" for k, v in values.items()), sep="  ", flush=True)
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def _share_buffers(self) -> None:
        """The running statistics of the first process for all: each has seen other examples."""
        if self.job.size > 1:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, 0)

    def _save(self, step: int) -> None:
        """Write a checkpoint that any number of processes can read; the one before goes when it is whole."""
        self._share_buffers()
        self.optimizer.zero_grad()
        model, optimizer = get_state_dict(self.model, self.optimizer)
        out: Path = self.args.out
        folder = out / f"step-{step}"
        save({"model": model, "optimizer": optimizer}, checkpoint_id=folder, no_dist=self.job.size == 1)
        if self.job.rank == 0:
            rest = {"step": step, "scheduler": self.scheduler.state_dict(), "scaler": self.scaler.state_dict()}
            torch.save(rest, folder / "rest.pt")
            (out / "latest.new").write_text(folder.name)
            os.replace(out / "latest.new", out / "latest")
            for old in set(out.glob("step-*")) - {folder}:
                shutil.rmtree(old)
        if self.job.size > 1:
            dist.barrier()

    def _load(self) -> int:
        """Go on from the last checkpoint: its step, or 0 where there is none."""
        out: Path = self.args.out
        if not (out / "latest").exists():
            return 0
        folder = out / (out / "latest").read_text()
        model, optimizer = get_state_dict(self.model, self.optimizer)
        state: dict[str, Any] = {"model": model, "optimizer": optimizer}
        load(state, checkpoint_id=folder, no_dist=self.job.size == 1)
        set_state_dict(self.model, self.optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        rest = torch.load(folder / "rest.pt", weights_only=True)
        self.scheduler.load_state_dict(rest["scheduler"])
        self.scaler.load_state_dict(rest["scaler"])
        step: int = rest["step"]
        return step


def prepared(
    args: argparse.Namespace,
    job: Job,
    recipe: Recipe,
    model: nn.Module,
    length: int,
    loss: Callable[[nn.Module, Batch], Tensor],
    evaluate: Callable[[nn.Module], dict[str, float]],
    *,
    blocks: Iterable[nn.Module] = (),
    groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None,
    alike: Sequence[int] | None = None,
    target: Callable[[dict[str, float]], bool] | None = None,
) -> Training:
    """A training as the arguments have it.

    Args:
        args: of the command line.
        job: this process's place.
        recipe: the first-order one.
        model: as it was built, with its first weights.
        length: of the training set.
        loss: of the model on a batch.
        evaluate: what the model is worth.
        blocks: modules that are sharded by themselves.
        groups: the param groups of the model; default: one, of all that is trained.
        alike: as for :class:`Order`.
        target: whether scores are good enough to end.
    """
    parts = job.size * args.accumulate
    order = Order(length, args.batch_size // parts, parts, args.seed, alike)
    total_steps = args.steps or args.epochs * order.steps
    ready = spread(model, blocks, args, job)
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    found = groups(model) if groups else [{"params": trained}]
    optimizer, scheduler = optimizer_of(args, recipe, found, total_steps)
    return Training(args, job, ready, optimizer, scheduler, order, total_steps, loss, evaluate, recipe.clip, target)


def autocast(args: argparse.Namespace, device: torch.device) -> torch.autocast:
    """As `--amp` has it."""
    dtype = getattr(torch, args.amp) if args.amp else None
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def _writer(args: argparse.Namespace) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(args.out)
