"""A small Mask R-CNN (He et al. 2017) in plain PyTorch, whose loss is a function of model and batch alone.

Where the paper draws anchors and proposals at random, all of them are used here: the balance between objects and
background that its sampling aims at is put into the mean. So every optimizer is given the same problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jorge_lab.tasks.nets import regions
from jorge_lab.tasks.nets.residual import stage, stem

#: Anchors of at least / at most this overlap with an object are positive / negative; the best of an object is positive.
_POSITIVE, _NEGATIVE = 0.6, 0.3
#: Boxes that go into the suppression of proposals, the overlap that is allowed among them, and how many come out.
_CANDIDATES, _PROPOSAL_OVERLAP, PROPOSALS = 64, 0.7, 16
#: A proposal of at least this overlap with an object is one; detections of a class may overlap by as much.
_FOREGROUND, _DETECTION_OVERLAP = 0.5, 0.5
#: Share of objects in the means of the second stage.
_FOREGROUND_SHARE = 0.25
#: Bins a side of what is cut out for a proposal, and pixels a side of its mask.
_BINS, _MASK = 7, 14
#: Scale of the second stage's offsets (Girshick et al.), which makes their variance about one.
_OFFSET_SCALE = (10.0, 10.0, 5.0, 5.0)


@dataclass(frozen=True)
class Shape:
    """Edge of the pictures in pixels, channels of the backbone's three stages, of the boxes' layers, and anchors."""

    edge: int
    widths: tuple[int, int, int]
    hidden: int
    sizes: tuple[float, ...]
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """Mean over the places where `where` is true, 0 where there are none."""
    return (values * where).sum() / where.sum().clamp(min=1)


def _distance(offsets: Tensor, wanted: Tensor) -> Tensor:
    """Smooth L1, summed over the four coordinates."""
    return F.smooth_l1_loss(offsets, wanted, reduction="none").sum(-1)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """`values[batch, index[batch, n]]`, of values `[batch, count, …]`."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


class Backbone(nn.Module):
    """A residual network to an eighth, whose last map is added to that at a quarter (Lin et al. 2017)."""

    def __init__(self, widths: tuple[int, int, int]) -> None:
        super().__init__()
        one, two, three = widths
        self.fine = nn.Sequential(stem(1, one), stage(one, two, blocks=1, stride=2))
        self.coarse = stage(two, three, blocks=1, stride=2)
        self.lateral, self.top = nn.Conv2d(two, three, 1), nn.Conv2d(three, three, 1)

    def forward(self, images: Tensor) -> Tensor:
        """`[batch, 1, edge, edge]` to `[batch, channel, edge / 4, edge / 4]`."""
        fine: Tensor = self.fine(images)
        above = F.interpolate(self.top(self.coarse(fine)), scale_factor=2.0, mode="nearest")
        return torch.add(self.lateral(fine), above)


class ProposalHead(nn.Module):
    """The region proposal network: how likely each anchor is an object, and its offsets."""

    def __init__(self, channels: int, kinds: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.object, self.offsets = nn.Conv2d(channels, kinds, 1), nn.Conv2d(channels, 4 * kinds, 1)
        for layer in (self.object, self.offsets):
            nn.init.normal_(layer.weight, std=0.01)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, channel, places, places]` to logits `[batch, anchor]` and offsets `[batch, anchor, 4]`."""
        h = F.relu(self.conv(maps))
        offsets = self.offsets(h).permute(0, 2, 3, 1).reshape(len(maps), -1, 4)
        return self.object(h).permute(0, 2, 3, 1).flatten(1), offsets


class BoxHead(nn.Module):
    """Class and offsets of each proposal; the offsets are the same for all classes."""

    def __init__(self, channels: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels * _BINS**2, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU()
        )
        self.kind, self.offsets = nn.Linear(hidden, 1 + classes), nn.Linear(hidden, 4)
        nn.init.normal_(self.kind.weight, std=0.01)
        nn.init.normal_(self.offsets.weight, std=0.001)

    def forward(self, cut: Tensor) -> tuple[Tensor, Tensor]:
        """`[batch, n, channel, bin, bin]` to logits `[batch, n, 1 + class]` and offsets `[batch, n, 4]`."""
        h = self.layers(cut.flatten(2))
        return self.kind(h), self.offsets(h)


class MaskHead(nn.Module):
    """A mask of each class for each proposal."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()),
            *(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()),
            *(nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.ReLU()),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, cut: Tensor, labels: Tensor) -> Tensor:
        """`[batch, n, channel, bin, bin]` to logits `[batch, n, 2 × bin, 2 × bin]` of the masks of classes from 1."""
        masks: Tensor = self.layers(cut.flatten(0, 1))
        chosen = _pick(masks, (labels.flatten(0, 1) - 1).clamp(min=0)[:, None])
        return chosen.view(*labels.shape, *chosen.shape[2:])


class MaskRCNN(nn.Module):
    """Calling it gives the training loss of a batch; :meth:`detect` finds objects."""

    reference: Tensor
    scale: Tensor

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.edge, channels = shape.edge, shape.widths[-1]
        self.backbone = Backbone(shape.widths)
        self.proposal = ProposalHead(channels, len(shape.sizes) * len(shape.ratios))
        self.box, self.mask = BoxHead(channels, shape.hidden, classes), MaskHead(channels, classes)
        reference = regions.anchors(shape.edge, shape.edge // 4, shape.sizes, shape.ratios)
        self.register_buffer("reference", reference, persistent=False)
        self.register_buffer("scale", torch.tensor(_OFFSET_SCALE), persistent=False)

    def forward(self, images: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor) -> Tensor:
        """The sum of the five losses: object or not, its box, then class, box and mask of the proposals.

        Args:
            images: `[batch, 1, edge, edge]`.
            boxes: `[batch, most, 4]`, zeros where there is no object.
            labels: `[batch, most]`, classes from 1, 0 where there is no object.
            masks: `[batch, most, edge, edge]`, 0 or 1.
        """
        maps = self.backbone(images)
        objectness, offsets = self.proposal(maps)
        first = self._first_stage_loss(objectness, offsets, boxes, labels)
        # objects are proposals too, as in Faster R-CNN; here with shifted copies, so that the second stage has the same
        # kind of objects to learn from before the first is any good, and its loss does not rise when that gets better
        proposals = torch.cat([self._propose(objectness, offsets), regions.shifted(boxes, self.edge)], dim=1)
        return first + self._second_stage_loss(maps, proposals, boxes, labels, masks)

    def _first_stage_loss(self, objectness: Tensor, offsets: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        overlap = regions.overlap(self.reference, boxes)
        best, which = overlap.max(2)
        nearest = (overlap == overlap.amax(1, keepdim=True)) & (overlap > 0)
        positive, negative = (best >= _POSITIVE) | nearest.any(2), best < _NEGATIVE
        which = torch.where(nearest.any(2) & (best < _POSITIVE), nearest.byte().argmax(2), which)
        error = F.binary_cross_entropy_with_logits(objectness, positive.float(), reduction="none")
        wanted = regions.encode(_pick(boxes, which), self.reference)
        balanced = (_mean(error, positive) + _mean(error, negative & ~positive)) / 2
        return balanced + _mean(_distance(offsets, wanted), positive)

    @torch.no_grad()
    def _propose(self, objectness: Tensor, offsets: Tensor) -> Tensor:
        """The best boxes `[batch, proposal, 4]`; those that were suppressed come last."""
        score, best = objectness.topk(_CANDIDATES, dim=1)
        boxes = regions.decode(_pick(offsets, best), self.reference[best], self.edge)
        kept = regions.suppress(boxes, _PROPOSAL_OVERLAP)
        return _pick(boxes, score.masked_fill(~kept, -torch.inf).topk(PROPOSALS, dim=1).indices)

    def _second_stage_loss(
        self, maps: Tensor, proposals: Tensor, boxes: Tensor, labels: Tensor, masks: Tensor
    ) -> Tensor:
        real = (proposals[..., 2:] > proposals[..., :2]).all(-1)
        best, which = regions.overlap(proposals, boxes).max(2)
        foreground = best >= _FOREGROUND
        wanted_label = torch.where(foreground, _pick(labels, which), 0)
        cut = regions.align(maps, proposals, self.edge, _BINS)
        kind, offsets = self.box(cut)
        kind_error = F.cross_entropy(kind.transpose(1, 2), wanted_label, reduction="none")
        background_loss = _mean(kind_error, real & ~foreground)
        # an empty box has no offsets: any other reference keeps them finite
        wanted = regions.encode(_pick(boxes, which), torch.where(real[..., None], proposals, self.reference[0]))
        object_loss = _mean(kind_error + _distance(offsets, wanted * self.scale), foreground)
        # masks are learnt on the proposals that fit best, a fixed number so that no shape depends on the data
        fit, chosen = best.topk(2 * labels.shape[1], dim=1)
        logits = self.mask(_pick(cut, chosen), _pick(wanted_label, chosen))
        cuts = regions.align(masks.float(), _pick(proposals, chosen), self.edge, _MASK)
        wanted_mask = cuts.take_along_dim(_pick(which, chosen)[:, :, None, None, None], 2).squeeze(2)
        mask_error = F.binary_cross_entropy_with_logits(logits, wanted_mask.round(), reduction="none")
        mask_loss = _mean(mask_error.mean((2, 3)), fit >= _FOREGROUND)
        return _FOREGROUND_SHARE * object_loss + (1 - _FOREGROUND_SHARE) * background_loss + mask_loss

    @torch.no_grad()
    def detect(self, images: Tensor, least: float = 0.5) -> tuple[Tensor, Tensor]:
        """Classes `[batch, proposal]`, 0 for none, and masks, bool `[batch, proposal, edge, edge]`, the surest first.

        Args:
            images: `[batch, 1, edge, edge]`.
            least: probability of the class that makes a detection.
        """
        maps = self.backbone(images)
        proposals = self._propose(*self.proposal(maps))
        kind, offsets = self.box(regions.align(maps, proposals, self.edge, _BINS))
        score, order = kind.softmax(2)[..., 1:].amax(2).sort(dim=1, descending=True, stable=True)
        labels = _pick(kind[..., 1:].argmax(2) + 1, order)
        boxes = _pick(regions.decode(offsets / self.scale, proposals, self.edge), order)
        # boxes of different classes are moved apart, so that only those of one class suppress each other
        kept = regions.suppress(boxes + 2 * self.edge * labels[..., None], _DETECTION_OVERLAP)
        logits = self.mask(regions.align(maps, boxes, self.edge, _BINS), labels)
        masks = regions.paste(logits.sigmoid(), boxes, self.edge) > 0.5
        found = kept & (score > least)
        return torch.where(found, labels, 0), masks & found[..., None, None]
