"""What the recipes are made of: settings, the order of the data, files, evaluations with known answers, sizes."""

import argparse
import shlex
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jorge import Jorge
from recipes import cifar10, gpt
from recipes.order import Drawn, Job, Order, shares
from recipes.settings import Recipe, optimizer_of, parser, steps_at
from tests.recipes import data

# What pycocotools has of an older numpy's is its own.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
ALONE = Job(0, 1, torch.device("cpu"))
RECIPE = Recipe(
    batch_size=256,
    epochs=90,
    sgd={"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4},
    adamw={"lr": 1e-3, "weight_decay": 0.05},
    transferred="sgd",
    decay=steps_at(0.5, 0.75),
)


def optimizer(*argv: str, recipe: Recipe = RECIPE, total: int = 90) -> tuple[Any, list[Any]]:
    """The optimizer and the learning rates of its first group, step by step."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    groups = [
        {"params": list(part.named_parameters()), "lr_scale": k} for k, part in zip((1.0, 10.0), model, strict=True)
    ]
    args = parser("none", None, recipe).parse_args(["data", *argv])
    found, scheduler = optimizer_of(args, recipe, groups, total)
    rates = []
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    for _ in range(total):
        rates.append(scheduler.get_last_lr()[0])
        found.step()
        scheduler.step()
    return found, rates


def test_sgd_is_the_recipe_s_in_proportion_to_the_batch() -> None:
    found, rates = optimizer("--optimizer", "sgd", "--batch-size", "1024")
    assert type(found) is torch.optim.SGD
    assert [group["initial_lr"] for group in found.param_groups] == pytest.approx([0.4, 4.0])
    assert (found.param_groups[0]["momentum"], found.param_groups[0]["weight_decay"]) == (0.9, 1e-4)
    assert [rates[t] for t in (0, 44, 45, 67, 68, 89)] == pytest.approx([0.4, 0.4, 0.04, 0.04, 0.004, 0.004])


def test_adamw_keeps_its_rate_and_warms_up() -> None:
    found, rates = optimizer("--optimizer", "adamw", "--batch-size", "1024", "--warmup-steps", "10")
    assert type(found) is torch.optim.AdamW
    assert rates[:10] == pytest.approx([1e-4 * (t + 1) for t in range(10)])
    assert rates[10] == pytest.approx(1e-3)


@pytest.mark.parametrize(("name", "method"), [("jorge", "whitening"), ("shampoo", "exact")])
def test_jorge_and_shampoo_have_the_paper_s_transfer(name: str, method: str) -> None:
    found, rates = optimizer("--optimizer", name)
    assert type(found) is Jorge
    group = found.param_groups[0]
    assert (group["method"], group["grafting"], group["momentum"]) == (method, "sgd", 0.9)
    assert group["weight_decay"] == pytest.approx(1e-3)
    assert [rates[t] for t in (0, 29, 30, 60)] == pytest.approx([0.1, 0.1, 0.01, 0.001])


def test_schedule_rate_and_options_can_be_said() -> None:
    found, rates = optimizer(
        *shlex.split("--schedule recipe --lr 0.3 --weight-decay 0 --options interval=3 method=binomial")
    )
    group = found.param_groups[0]
    assert (group["interval"], group["method"], group["weight_decay"]) == (3, "binomial", 0.0)
    assert [rates[t] for t in (0, 44, 45, 68)] == pytest.approx([0.3, 0.3, 0.03, 0.003])


def test_from_adamw_keeps_the_recipe_s_schedule() -> None:
    found, rates = optimizer(recipe=gpt.RECIPE, total=100)
    assert (found.param_groups[0]["grafting"], found.param_groups[0]["weight_decay"]) == ("adam", 0.125)
    assert rates[0] == pytest.approx(1.5e-3 / 250)


@pytest.mark.parametrize("alike", [None, [k % 3 for k in range(50)]])
def test_an_epoch_has_each_example_at_most_once(alike: list[int] | None) -> None:
    order = Order(50, 2, 3, seed=0, alike=alike)
    assert order.steps == 8
    taken = order.epoch(0)[: order.steps * 3]
    examples = [example for each in taken for example in each]
    assert len(set(examples)) == len(examples) == 48
    assert order.epoch(0) != order.epoch(1)
    assert order.epoch(0) != Order(50, 2, 3, seed=1, alike=alike).epoch(0)
    if alike:
        assert all(len({alike[example] for example in each}) == 1 for each in taken)


def test_the_order_is_the_same_for_any_number_of_processes_and_parts() -> None:
    def steps(size: int, processes: int, parts: int, first: int = 0) -> list[set[tuple[int, int]]]:
        order = Order(50, size, processes * parts, seed=0)
        mine = [order.of(Job(rank, processes, torch.device("cpu")), first) for rank in range(processes)]
        return [{where for each in mine for part in islice(each, parts) for where in part} for _ in range(12)]

    one = steps(12, 1, 1)
    assert all(len(step) == 12 for step in one)
    assert {epoch for epoch, _ in one[3]} == {0}
    assert {epoch for epoch, _ in one[4]} == {1}
    assert one == steps(6, 2, 1) == steps(2, 2, 3)
    assert one[5:] == steps(6, 2, 1, first=5)[:7]


def test_what_is_drawn_for_an_example_follows_from_epoch_number_and_seed() -> None:
    class Random:
        def __getitem__(self, at: int) -> Tensor:
            return at + torch.rand(4)

    before = torch.get_rng_state()
    drawn = Drawn(Random(), seed=0)
    found = [drawn[where] for where in ((0, 1), (0, 2), (1, 1), (0, 1))]
    assert torch.equal(found[0], found[3])
    assert not torch.equal(found[0] - 1, found[1] - 2)
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], Drawn(Random(), seed=1)[0, 1])
    assert torch.equal(before, torch.get_rng_state())


def test_shares_are_the_whole_in_equally_many_batches() -> None:
    args = argparse.Namespace(workers=0, channels_last=False)
    parts = [list(shares(torch.arange(11), Job(rank, 4, torch.device("cpu")), args, 2)) for rank in range(4)]
    assert [len(part) for part in parts] == [2, 2, 2, 2]
    counted = [x for part in parts for batch, real in part for x in batch[:real].tolist()]
    assert sorted(counted) == list(range(11))


@pytest.mark.parametrize("header", [True, False])
def test_tokens_are_read_with_and_without_a_header(header: bool, tmp_path: Path) -> None:
    train, val = gpt.data(data.tokens(tmp_path / "tokens", header=header), context=64, validate=128)
    expected = list((data.SENTENCE * 100).encode())
    assert (len(train), len(val)) == (1999 // 64 + 2499 // 64, 2)
    assert train[0].tolist() == expected[:65]
    assert train[1999 // 64].tolist() == expected[2000:2065]
    assert val[1].tolist() == expected[64:129]


def test_without_a_validation_file_the_end_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text(data.SENTENCE * 100)
    train, val = gpt.data(tmp_path, context=10, validate=10**9)
    assert (len(train), len(val)) == ((4500 - 225 - 1) // 10, 224 // 10)
    assert bytes(val[0].tolist()).decode() == (data.SENTENCE * 100)[4275:4286]


def test_a_folder_without_files_is_said(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"neither \.bin nor \.txt"):
        gpt.data(tmp_path, context=10, validate=10)


def test_the_speed_run_s_model_is_causal_and_of_its_size() -> None:
    sizes = {name: gpt.SPEEDRUN[name] for name in ("vocabulary", "layers", "width", "heads")}
    with torch.device("meta"):
        whole = gpt.GPT(**sizes)
    # as the speed-run's: an embedding, a head with a bias, in each block six matrices with biases and two norms
    layer = 12 * 768**2 + 9 * 768 + 2 * 768
    assert sum(p.numel() for p in whole.parameters()) == 2 * 50304 * 768 + 50304 + 12 * layer + 2 * 768
    model = gpt.GPT(vocabulary=20, layers=2, width=16, heads=2)
    for p in model.parameters():
        nn.init.normal_(p, std=0.3)
    tokens = torch.randint(20, (1, 8))
    other = tokens.clone()
    other[0, 5] = (tokens[0, 5] + 1) % 20
    same = (model(tokens) == model(other)).all(-1)[0]
    assert same.tolist() == [True] * 5 + [False] * 3
    assert model(tokens).abs().max() < 15


def test_positions_turn_pairs_by_their_distance_alone() -> None:
    q, k = torch.randn(2, 1, 16)
    scores = gpt.turned(q.expand(6, -1)) @ gpt.turned(k.expand(6, -1)).T
    assert torch.allclose(scores.diagonal(), scores[0, 0].expand(6), atol=1e-5)
    assert torch.allclose(scores.diagonal(2), scores[0, 2].expand(4), atol=1e-5)
    assert not torch.allclose(scores[0, 0], scores[0, 2], atol=1e-3)


def test_cifar_s_pictures_are_read_moved_and_holed(tmp_path: Path) -> None:
    images, labels = cifar10.pictures(data.cifar10(tmp_path / "cifar"), ["data_batch_1", "data_batch_2"])
    assert images.shape == (40, 3, 32, 32)
    assert labels.tolist() == [k % 10 for k in range(20)] * 2
    torch.manual_seed(0)
    ramp = torch.arange(1.0, 33).expand(200, 1, 32, 32)
    found = cifar10.drawn(ramp)
    holes = (found == 0).sum((1, 2, 3))
    assert holes.tolist() == [64] * 200
    rising = torch.stack([row[row > 0].diff().sum() > 0 for row in found[:, 0, 0]])
    assert 60 < int(rising.sum()) < 140
    assert sum(p.numel() for p in cifar10.ResNet9().parameters()) == 6_573_120


# With torchvision and pycocotools


def test_every_kind_of_segmentation_is_read(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools")
    from recipes.coco import Coco

    coco = Coco(data.coco(tmp_path / "coco"), "train")
    assert len(coco.ids) == 14
    kinds = set()
    for of in coco.ids:
        assert coco.image(of).mode == "RGB"
        for annotation in coco.annotations(of):
            found = annotation["segmentation"]
            kinds.add((type(found).__name__, type(found["counts"]).__name__ if isinstance(found, dict) else len(found)))
            left, top, width, height = (int(side) for side in annotation["bbox"])
            expected = torch.zeros(64, 64, dtype=torch.bool)
            expected[top : top + height, left : left + width] = True
            assert torch.equal(coco.mask(annotation), expected)
    assert kinds == {("list", 1), ("list", 2), ("dict", "str"), ("dict", "list")}
    assert any(not coco.annotations(of) for of in coco.ids)


def test_segmentation_has_the_classes_of_voc(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from recipes import deeplab

    args = argparse.Namespace(base_size=64, crop_size=80)
    where = data.coco(tmp_path / "coco")
    train, val = (deeplab.Segmentation(where, split, args) for split in ("train", "val"))
    assert len(train) == 8  # of 14: three are empty, and a kite is not VOC's
    assert len(val) == 5
    image, classes = train[0]
    assert (image.shape, classes.shape) == ((3, 80, 80), (80, 80))
    assert set(classes.flatten().tolist()) <= {0, 3, 12, 255}
    assert [set(val[k][1].flatten().tolist()) for k in range(5)] == [{0, 3}, {0, 12}, {0}, {0}, {0, 12}]


def test_instances_leave_out_crowds_and_empty_pictures_in_training(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from recipes import mask_rcnn

    where = data.coco(tmp_path / "coco")
    train, val = (mask_rcnn.Instances(where, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (11, 5)
    assert [len(val[k][1]["boxes"]) for k in range(5)] == [1, 1, 1, 0, 1]
    assert train.shapes() == [0] * 11
    flips = set()
    for _ in range(20):
        image, target = train[0]
        left, top, right, bottom = target["boxes"][0].int().tolist()
        flips.add(left)
        assert torch.equal(target["masks"][0].nonzero().amin(0), torch.tensor([top, left]))
        assert target["masks"][0].sum() == (right - left) * (bottom - top)
        assert image.shape == (3, 64, 64)
    assert len(flips) == 2


class Known(nn.Module):
    """Answers with what it is given, one after the other."""

    def __init__(self, answers: list[Any]) -> None:
        super().__init__()
        self.answers = list(answers)

    def forward(self, images: Any) -> Any:
        return self.answers.pop(0)


def test_top_1_and_top_5_are_counted(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from recipes import imagenet

    args = argparse.Namespace(
        data=data.image_folder(tmp_path / "pictures"),
        crop_size=32,
        resize_size=36,
        evaluation_batch=15,
        workers=0,
        channels_last=False,
    )
    train, val = imagenet.pictures(args)
    assert (len(train), len(val), train.classes) == (48, 15, ["n01440764", "n01443537", "n01484850"])
    logits = nn.functional.one_hot(torch.tensor([0] * 5 + [1] * 5 + [0] * 5), 3).float()  # the third class is missed
    found = imagenet.accuracy(Known([logits]), val, ALONE, args)
    assert found == {"top1": pytest.approx(200 / 3), "top5": 100.0}


def test_a_perfect_segmentation_overlaps_wholly(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from recipes import deeplab

    args = argparse.Namespace(base_size=64, crop_size=64, workers=0, channels_last=False)
    val = deeplab.Segmentation(data.coco(tmp_path / "coco"), "val", args)
    truth = [val[k][1].clamp(max=20) for k in range(5)]
    logits = [{"out": nn.functional.one_hot(classes, 21).permute(2, 0, 1)[None].float()} for classes in truth]
    assert deeplab.overlap(Known(logits), val, ALONE, args) == {"mean_iou": 100.0, "pixels": 100.0}
    nothing = {"out": nn.functional.one_hot(torch.zeros_like(truth[0]), 21).permute(2, 0, 1)[None].float()}
    found = deeplab.overlap(Known([nothing] * 5), val, ALONE, args)
    background = sum(int((classes == 0).sum()) for classes in truth) / (5 * 64 * 64)
    assert found == {"mean_iou": pytest.approx(100 * background / 3), "pixels": pytest.approx(100 * background)}


def test_perfect_instances_have_a_precision_of_one_hundred(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    from recipes import mask_rcnn

    args = argparse.Namespace(workers=0, channels_last=False)
    val = mask_rcnn.Instances(data.coco(tmp_path / "coco"), "val")
    truth = []
    for of in val.ids:
        things = [a for a in val.coco.annotations(of) if not a["iscrowd"]]
        corners = torch.tensor([a["bbox"] for a in things]).view(-1, 4)
        corners[:, 2:] += corners[:, :2]
        masks = [val.coco.mask(a)[None].float() for a in things]
        answer = {
            "boxes": corners,
            "labels": torch.tensor([a["category_id"] for a in things]),
            "scores": torch.ones(len(things)),
            "masks": torch.stack(masks) if masks else torch.zeros(0, 1, 64, 64),
        }
        truth.append([answer])
    perfect = {"box_ap": 100.0, "box_ap50": 100.0, "mask_ap": 100.0, "mask_ap50": 100.0}
    assert mask_rcnn.precision(Known(truth), val, ALONE, args) == pytest.approx(perfect)
    nothing = [[{name: part[:0] for name, part in found[0].items()}] for found in truth]
    assert set(mask_rcnn.precision(Known(nothing), val, ALONE, args).values()) == {0.0}


@pytest.mark.parametrize(
    ("name", "count"), [("imagenet", 25_557_032), ("deeplab", 42_004_074), ("mask_rcnn", 44_401_393 + 53_120)]
)
def test_the_models_are_torchvision_s(name: str, count: int) -> None:
    """As many parameters as torchvision says of its weights; Mask R-CNN's norms are frozen there, and no parameters."""
    pytest.importorskip("torchvision")
    import importlib

    args = argparse.Namespace(model="resnet50", backbone="none")
    with torch.device("meta"):
        built = importlib.import_module(f"recipes.{name}").build(args, *([1000] if name == "imagenet" else []))
    assert sum(p.numel() for p in built.parameters()) == count
