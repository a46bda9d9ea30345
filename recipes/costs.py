"""What the trainings may take and cost, before anybody has run them: predictions, for README's table.

    python -m recipes.costs --price 3

A step is the model's passes, the sum of the gradients over processes, and the optimizer's step, one after the other.

- Passes: their FLOPs, at the rate that one H100 had in `lab/records/gpu.json`: ResNet-50's for pictures, GPT-2 small's
  for text. Both are forward and backward passes as the cost model counts them, over the iteration without the step.
- Gradients: what a ring sends of 4 bytes a parameter, at the links' rate in `jorge.exchange.rates`: that of one machine
  up to 8 GPUs, that of a network above.
- Optimizer: what its elementwise work moves, at the rate at which that card copies; Jorge's products and messages by
  `jorge.cost.distributed`, as `distributed="auto"` shares them, at the card's rate of products of blocks of 128 in TF32
  and at those links.

Not in it: reading of data, evaluation, launches, small batches that fill a card badly, what overlaps, SyncBatchNorm.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import maskrcnn_resnet50_fpn
from torchvision.models.segmentation import deeplabv3_resnet50

from jorge.cost import Estimate, distributed, estimate, model_flops
from jorge.cost.distributed import automatic
from jorge.exchange.rates import FAR, NEAR, Rates
from recipes import gpt

RECORD = Path(__file__).parents[1] / "lab" / "records" / "gpu.json"
GPUS = (1, 8, 16)


@dataclass(frozen=True)
class Case:
    """A training: its name, model, FLOPs an example, examples of an epoch and of a step, and first-order optimizer."""

    name: str
    model: nn.Module
    flops: float
    examples: int
    batch: int
    grafting: str
    epoch: str = "epoch"

    @property
    def rate(self) -> tuple[str, str]:
        """Whose passes were measured, and with which optimizer."""
        return ("resnet50", "sgd") if self.grafting == "sgd" else ("gpt2", "adamw")


class Detector(nn.Module):
    """The parts of Mask R-CNN that have weights, on what a picture gives them: 512 boxes, a quarter of them with masks.

    The whole cannot be counted without memory, as it looks at values to choose the boxes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.whole: Any = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
        for name, p in self.whole.backbone.body.named_parameters():  # frozen where the backbone was trained before
            if name.startswith(("conv1", "bn1", "layer1")):
                p.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Any]:
        """Of `[batch, 3, height, width]`."""
        features = list(self.whole.backbone(images).values())
        heads, count, channels = self.whole.roi_heads, len(images), features[0].shape[1]
        boxes = images.new_empty(512 * count, channels, 7, 7)
        masks = images.new_empty(128 * count, channels, 14, 14)
        found = [*self.whole.rpn.head(features), heads.box_predictor(heads.box_head(boxes))]
        return [*found, heads.mask_predictor(heads.mask_head(masks))]


def _total(found: Any) -> Tensor:
    """The sum of all tensors."""
    if isinstance(found, Tensor):
        return found.float().sum()
    parts = [_total(each) for each in (found.values() if isinstance(found, dict) else found)]
    return torch.stack(parts).sum()


def _flops(model: nn.Module, *shape: int) -> float:
    """Of an example: two are counted, as norms need more than one."""
    return model_flops(model, torch.empty(2, *shape, device="meta"), loss=_total) / 2


def cases() -> list[Case]:
    """The trainings, at the sizes of the full data sets."""
    with torch.device("meta"):
        classifier = resnet50()
        segmenter = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=21, aux_loss=True)
        detector = Detector()
        sizes = {name: gpt.SPEEDRUN[name] for name in ("vocabulary", "layers", "width", "heads")}
        transformer = gpt.GPT(**sizes)
    pictures, words = _flops(classifier, 3, 224, 224), torch.zeros(2, 1024, dtype=torch.long, device="meta")
    return [
        Case("ResNet-50, batch 256", classifier, pictures, 1_281_167, 256, "sgd"),
        Case("ResNet-50, batch 1024", classifier, pictures, 1_281_167, 1024, "sgd"),
        Case("DeepLabv3, batch 32 of 480 × 480", segmenter, _flops(segmenter, 3, 480, 480), 92_518, 32, "sgd"),
        Case("Mask R-CNN, batch 16 of 800 × 1088", detector, _flops(detector, 3, 800, 1088), 117_266, 16, "sgd"),
        Case("GPT speed-run", transformer, model_flops(transformer, words) / 2, 512_000, 512, "adam", "1000 steps"),
    ]


class Machine:
    """What one H100 did, from the record.

    Args:
        record: of `jorge_lab.cost.gpu`.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self.copied = 1e12 * record["ceilings"]["copy, TB/s"]
        self.products = 1e12 * record["ceilings"]["bmm of 128 in tf32, TFLOP/s"]

    def _ms(self, kind: str, model: str, optimizer: str, what: str) -> float:
        found: float = next(row for row in self.record[f"{kind}, {model}"] if row["optimizer"] == optimizer)[what]
        return found

    @cache  # noqa: B019
    def passes(self, of: tuple[str, str]) -> float:
        """FLOPs a second of forward and backward passes."""
        name, optimizer = of
        measured = self._ms("iteration", name, optimizer, "ms") - self._ms("step", name, optimizer, "mean_ms")
        if name == "resnet50":
            with torch.device("meta"):
                flops = 256 * _flops(resnet50(), 3, 224, 224)
        else:  # 32 × 1024 tokens of 124,439,808 parameters and twelve layers of width 768, by the usual count
            flops = 32 * 1024 * (6 * 124_439_808 + 12 * 12 * 768 * 1024)
        return flops / measured * 1e3

    def measured_extra(self) -> float:
        """Seconds that Jorge added to an iteration of ResNet-50 there."""
        own, base = (self._ms("iteration", "resnet50", who, "ms") for who in ("jorge", "sgd"))
        return (own - base) / 1e3

    def step(self, case: Case, gpus: int) -> tuple[float, float]:
        """Seconds of a step: with the first-order optimizer, and with Jorge."""
        first, own, size = self._optimizers(case.model, case.grafting, gpus)
        shared = case.batch / gpus * case.flops / self.passes(case.rate)
        shared += 2 * (gpus - 1) / gpus * 4 * size / _links(gpus).bandwidth
        return shared + first, shared + own

    @cache  # noqa: B019 - there is one machine, for one table
    def _optimizers(self, model: nn.Module, grafting: str, gpus: int) -> tuple[float, float, int]:
        """Seconds of a step of both, and how many parameters are trained."""
        cost = self._estimate(model, grafting)
        first = next(r for r in cost.rivals if r.name == ("SGD" if grafting == "sgd" else "AdamW"))
        products = cost.flops_per_step / self.products
        if gpus > 1:
            links = _links(gpus)
            strategy = automatic(model, world_size=gpus, rates=links, grafting=grafting)
            work = distributed(model, world_size=gpus, strategy=strategy, grafting=grafting)
            products = work.seconds(flops=self.products, bandwidth=links.bandwidth, latency=links.latency)
        size = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return first.bytes_per_step / self.copied, cost.bytes_per_step / self.copied + products, size

    @cache  # noqa: B019
    def _estimate(self, model: nn.Module, grafting: str) -> Estimate:
        return estimate(model, grafting=grafting)


def _links(gpus: int) -> Rates:
    return NEAR if gpus <= 8 else FAR


def table(price: float = 3.0) -> str:
    """The predictions as Markdown, and beside them the one figure that was measured."""
    machine = Machine(json.loads(RECORD.read_text(encoding="utf-8")))
    lines = [
        "| training | GPUs | ms a step: first-order, Jorge | minutes an epoch: first-order, Jorge | $ an epoch |",
        "|---|--:|--:|--:|--:|",
    ]
    known = cases()
    for case in known:
        for gpus in GPUS:
            seconds = machine.step(case, gpus)
            steps = case.examples // case.batch
            ms = ", ".join(f"{1e3 * each:.3g}" if each < 1 else f"{1e3 * each:.0f}" for each in seconds)
            minutes = [each * steps / 60 for each in seconds]
            dollars = ", ".join(f"{each / 60 * gpus * price:.3g}" for each in minutes)
            name = case.name if case.epoch == "epoch" else f"{case.name}, {case.epoch}"
            lines.append(f"| {name} | {gpus} | {ms} | {', '.join(f'{each:.3g}' for each in minutes)} | {dollars} |")
    first, own = machine.step(known[0], 1)
    extra = f"{1e3 * (own - first):.2g} ms where {1e3 * machine.measured_extra():.2g} ms were measured"
    return "\n".join([*lines, "", f"Of Jorge's part this predicts, for ResNet-50 on one GPU, {extra}."])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser("python -m recipes.costs", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--price", type=float, default=3.0, help="dollars an hour of a GPU (default: 3, assumed)")
    print(table(parser.parse_args(argv).price))


if __name__ == "__main__":
    main()
