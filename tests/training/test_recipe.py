"""What newer recipes add: policies, erasing, mixup and cutmix, LARS; against torchvision and float64."""

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.v2 as v2
from photographs import photograph
from torch import nn

from resnet_train.config import load
from resnet_train.config.data import AugmentConfig, RandAugmentConfig, TrivialAugmentConfig
from resnet_train.config.schema import OptimizerConfig
from resnet_train.data import auto_augment, mixup, rng
from resnet_train.data.sampler import Sampler
from resnet_train.training.lars import Lars
from resnet_train.training.optim import build_optimizer
from resnet_train.training.schedule import build_schedule

CONFIGS = Path(__file__).parents[2] / "configs"
WIDE, RAND = (
    TrivialAugmentConfig(kind="trivial-augment"),
    RandAugmentConfig(kind="rand-augment", operations=2, magnitude=17),
)
THEIRS = {
    WIDE: v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR),
    RAND: v2.RandAugment(2, 17, interpolation=v2.InterpolationMode.BILINEAR),
}


def table(n: int, columns: int) -> rng.Floats:
    return rng.uniform(0, np.zeros(n, np.int64), np.arange(n), columns)


@pytest.mark.parametrize("cfg", [WIDE, RAND], ids=lambda cfg: cfg.kind)
def test_operations_and_magnitudes_are_torchvisions_and_evenly_drawn(
    cfg: TrivialAugmentConfig | RandAugmentConfig,
) -> None:
    n, space = 40_000, THEIRS[cfg]._AUGMENTATION_SPACE
    assert list(space) == list(auto_augment.OPERATIONS)
    edits = auto_augment.plan(cfg, table(n, auto_augment.number_of_draws(cfg)), 90)
    operations, magnitudes = edits.operations.ravel(), edits.magnitudes.ravel()
    counts = np.bincount(operations, minlength=14)
    assert (abs(counts - len(operations) / 14) < 5 * math.sqrt(len(operations) / 14)).all()
    for number, (levels_of, signed) in enumerate(space.values()):
        levels = levels_of(31, 90, 90)
        wanted = np.zeros(1) if levels is None else np.atleast_1d(levels[slice(None) if cfg is WIDE else 17].double())
        wanted = np.concatenate([wanted, -wanted]) if signed else wanted
        found, times = np.unique(magnitudes[operations == number], return_counts=True)
        assert np.array_equal(found, np.unique(wanted + 0.0)), auto_augment.OPERATIONS[number]
        expected = counts[number] * np.array([(wanted == value).sum() for value in found]) / len(wanted)
        assert (abs(times - expected) < 5 * np.sqrt(expected) + 1).all(), auto_augment.OPERATIONS[number]


@pytest.mark.parametrize("cfg", [WIDE, RAND], ids=lambda cfg: cfg.kind)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_edited_images_are_torchvisions(cfg: TrivialAugmentConfig | RandAugmentConfig, mode: str) -> None:
    image = photograph(48, 48).convert(mode)
    pixels = np.asarray(image).reshape(48, 48, -1)
    edits = auto_augment.plan(cfg, table(150, auto_augment.number_of_draws(cfg)), 48)
    assert set(edits.operations.ravel()) == set(range(14))
    for operations, magnitudes in zip(*edits, strict=True):
        wanted = image
        for operation, magnitude in zip(operations, magnitudes, strict=True):
            wanted = THEIRS[cfg]._apply_image_or_video_transform(
                wanted,
                auto_augment.OPERATIONS[operation],
                float(magnitude),
                v2.InterpolationMode.BILINEAR,
                THEIRS[cfg]._fill,
            )
        found = np.array(pixels)[None]
        auto_augment.apply(found, auto_augment.Edits(operations[None], magnitudes[None]))
        assert np.array_equal(found[0], np.asarray(wanted).reshape(48, 48, -1)), (operations, magnitudes)


def test_boxes_are_erased_as_torchvision_does() -> None:
    images = torch.randn(50, 3, 20, 30).to(memory_format=torch.channels_last)
    boxes = torch.from_numpy(mixup.erase_boxes(0.7, table(50, mixup.ERASE_DRAWS), 20, 30))
    erased = mixup.erase(images, boxes)
    assert erased.is_contiguous(memory_format=torch.channels_last)
    for image, box, found in zip(images, boxes.tolist(), erased, strict=True):
        left, top, right, bottom = box
        wanted = v2.functional.erase(image, top, left, bottom - top, right - left, torch.zeros(3, 1, 1))
        assert torch.equal(found, wanted)
    assert 20 < (boxes[:, 2] > 0).sum() < 48


@pytest.mark.parametrize("size", [(20, 30), (160, 8)])  # of the second, many draws of a box fail
def test_erased_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    n, (height, width) = 4000, size
    ours = torch.from_numpy(mixup.erase_boxes(0.8, table(n, mixup.ERASE_DRAWS), height, width)).double()
    theirs = torch.zeros(n, 4, dtype=torch.double)
    transform, image = v2.RandomErasing(p=1.0), torch.zeros(3, height, width)
    torch.manual_seed(0)
    for row in theirs[: int(0.8 * n)]:
        drawn = transform.make_params([image])
        i, j, h, w = (drawn[key] for key in "ijhw")
        if drawn["v"] is not None:
            row.copy_(torch.tensor([j, i, j + w, i + h]))
    values = torch.arange(max(size) + 1)[:, None, None]
    difference = (ours <= values).double().mean(1) - (theirs <= values).double().mean(1)
    assert difference.abs().max() < 5 * math.sqrt(0.5 / n)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 3.0])
def test_beta_is_beta(alpha: float) -> None:
    n = 20_000
    found = torch.tensor([mixup.symmetric_beta(alpha, u, v) for u, v in table(n, 2)], dtype=torch.double)
    exact = torch.distributions.Beta(torch.tensor(alpha, dtype=torch.double), torch.tensor(alpha, dtype=torch.double))
    torch.manual_seed(0)
    theirs, points = exact.sample((n,)), torch.tensor([1e-6, 1e-3, *(i / 20 for i in range(1, 20)), 0.999, 1 - 1e-6])
    difference = (found[:, None] <= points).double().mean(0) - (theirs[:, None] <= points).double().mean(0)
    assert difference.abs().max() < 5 * math.sqrt(0.5 / n)
    assert abs(found.var() - exact.variance) < 0.02 * exact.variance + 1e-3


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_batches_are_mixed_as_torchvision_does(name: str) -> None:
    images, labels = torch.randn(6, 3, 20, 30).to(memory_format=torch.channels_last), torch.arange(6)
    theirs = (v2.MixUp if name == "mixup" else v2.CutMix)(num_classes=6)
    cfg, parts = AugmentConfig.model_validate({name: 0.7}), []
    for seed in range(40):
        blend = mixup.plan(cfg, seed, 20, 30)
        mixed, part = mixup.mix(images, torch.from_numpy(blend))
        box = tuple(map(int, blend[1:]))
        drawn = {"labels": labels, "batch_size": 6, "lam": float(blend[0]), "box": box, "lam_adjusted": float(part)}
        torch.testing.assert_close(mixed, theirs.transform(images, drawn), rtol=0, atol=1e-6)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        area = (box[2] - box[0]) * (box[3] - box[1]) / 600 if name == "cutmix" else 1 - float(blend[0])
        assert part.item() == pytest.approx(1 - area, abs=1e-6)
        one_hot = nn.functional.one_hot(labels).float()
        wanted = theirs.transform(labels, drawn)
        torch.testing.assert_close(part * one_hot + (1 - part) * mixup.neighbours(one_hot), wanted, rtol=0, atol=1e-6)
        parts.append(float(part))
    assert len(set(parts)) > 30


def test_boxes_of_cutmix_are_distributed_as_torchvisions() -> None:
    n, theirs = 4000, v2.CutMix(num_classes=2, alpha=1.0)
    torch.manual_seed(0)
    wanted = torch.tensor([theirs.make_params([torch.zeros(3, 32, 48)])["box"] for _ in range(n)]).double()
    plans = [mixup.plan(AugmentConfig(cutmix=1.0), seed, 32, 48) for seed in rng.seeds(0, np.arange(n))]
    found = torch.from_numpy(np.stack(plans)[:, 1:])
    values = torch.arange(49)[:, None, None]
    difference = (found <= values).double().mean(1) - (wanted <= values).double().mean(1)
    assert difference.abs().max() < 5 * math.sqrt(0.5 / n)


def test_with_mixup_and_cutmix_each_batch_draws_one_of_them() -> None:
    seeds = rng.seeds(0, np.arange(1000))
    both = [mixup.plan(AugmentConfig(mixup=0.2, cutmix=1.0), seed, 32, 32) for seed in seeds]
    alone = [
        [mixup.plan(cfg, seed, 32, 32) for seed in seeds]
        for cfg in (AugmentConfig(mixup=0.2), AugmentConfig(cutmix=1.0))
    ]
    is_mixup = [np.array_equal(blend, first) for blend, first in zip(both, alone[0], strict=True)]
    assert all(a or np.array_equal(b, c) for a, b, c in zip(is_mixup, both, alone[1], strict=True))
    assert abs(sum(is_mixup) - 500) < 80


@pytest.mark.parametrize("lr", [0.7, torch.tensor(0.7)], ids=["float", "tensor"])
def test_lars_is_the_papers(lr: float | torch.Tensor) -> None:
    """You et al. 2017, algorithm 1, in float64; a rate that changes, a weight of norm 0, a parameter without trust."""
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(4, 3, 2, 2)), nn.Parameter(torch.zeros(5)), nn.Parameter(torch.randn(3))]
    ours = Lars(
        [{"params": weights[:2]}, {"params": weights[2:], "weight_decay": 0.0, "trust_coefficient": None}],
        lr,
        0.9,
        0.01,
        0.02,
    )
    exact, v = [w.detach().double().clone() for w in weights], [torch.zeros_like(w).double() for w in weights]
    for rate in (0.7, 0.7, 0.1, 0.01):
        for i, weight in enumerate(weights):
            g = torch.randn_like(weight)
            weight.grad = g
            decay, norm = (0.0 if i == 2 else 0.01), exact[i].norm()
            local = 0.02 * norm / (g.double().norm() + decay * norm) if i < 2 and norm > 0 else 1.0
            v[i] = 0.9 * v[i] + rate * local * (g.double() + decay * exact[i])
            exact[i] = exact[i] - v[i]
        for group in ours.param_groups:
            group["lr"] = rate if isinstance(lr, float) else torch.tensor(rate)
        ours.step()
    for weight, wanted in zip(weights, exact, strict=True):
        torch.testing.assert_close(weight.detach().double(), wanted, rtol=1e-5, atol=1e-6)


def test_lars_trusts_weights_of_convolutions_and_the_head_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    made = build_optimizer(
        net, OptimizerConfig(kind="lars", trust_coefficient=0.01, weight_decay=1e-3, decay_on="matrices")
    )
    assert isinstance(made, Lars)
    found = {
        id(parameter): (group["trust_coefficient"], group["weight_decay"])
        for group in made.param_groups
        for parameter in group["params"]
    }
    wanted = {
        id(p): (0.01, 1e-3) if name in ("0.weight", "3.weight") else (None, 0.0) for name, p in net.named_parameters()
    }
    assert found == wanted


def test_lars_goes_on_from_its_state() -> None:
    net = nn.Linear(3, 2)
    ours = Lars([{"params": list(net.parameters())}], 0.1)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    ours.step()
    other = copy.deepcopy(net)
    again = Lars([{"params": list(other.parameters())}], 0.1)
    again.load_state_dict(copy.deepcopy(ours.state_dict()))
    for parameter, twin in zip(net.parameters(), other.parameters(), strict=True):
        parameter.grad = twin.grad = torch.ones_like(parameter)
    ours.step()
    again.step()
    assert torch.equal(net.weight, other.weight)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_repeated_samples_are_spread_over_the_shares_and_augmented_in_ways_of_their_own(ranks: int) -> None:
    """Hoffer et al. 2020; torchvision deals the copies of an image to different ranks, too."""
    n, whole = 50, Sampler(3, 50, 32, repeat=4)
    dealt = [Sampler(3, n, 32, 1, rank, ranks, repeat=4) for rank in range(ranks)]
    once, seen = Sampler(3, n, 8), []
    for step in range(25):  # 200 samples: 4 epochs of 50
        epochs, indices = whole.batch(step)
        shares = [stream.rank_samples(step) for stream in dealt]
        assert np.array_equal(np.concatenate([share.indices for share in shares]), indices)
        assert np.array_equal(np.concatenate([share.epochs for share in shares]), epochs)
        assert np.array_equal(indices, np.tile(once.batch(step).indices, 4))
        if ranks == 8:
            assert all(len(set(share.indices)) == 4 for share in shares)
        seen += list(zip(epochs.tolist(), indices.tolist(), strict=True))
    assert sorted(seen) == [(epoch, index) for epoch in range(16) for index in range(n)]


def test_fast_recipe_is_ffcvs() -> None:
    """Rate and size of each epoch, by the formulas of its train_imagenet.py."""
    small = "networks=[resnet-18] train.batch_size=1024 optimizer.lr=0.5 optimizer.weight_decay=5e-5 schedule.warmup.lr=5e-5"
    path = CONFIGS / "imagenet-fast.yaml"
    assert small in path.read_text()
    for batch, peak, changes in ((4096, 1.7, ""), (1024, 0.5, small)):
        [run] = load.runs(load.load(path, changes.split()))
        plan = build_schedule(run, 1_281_167 / batch)
        assert run.train.batch_size == batch
        for epoch in range(16):
            step = math.ceil(epoch * 1_281_167 / batch) + 1
            rate = np.interp(epoch, [0, 2, 16], [1e-4 * peak, peak, 0])
            assert plan.lr_at(step) == pytest.approx(rate, abs=4e-3 * peak)
            assert plan.size_at(step) == np.round(np.interp(epoch, [11, 13], [160, 192]) / 32) * 32
        assert plan.size_at(plan.total - 1) == 192


def test_modern_recipe_averages_as_torchvisions() -> None:
    """Every 32 steps with alpha = (1 - decay) * batch * 32 / epochs: the rule of its references/classification/train.py."""
    run, *deeper = load.runs(load.load(CONFIGS / "imagenet-modern.yaml"))
    assert [run.augment.repeated_augmentation, *(other.augment.repeated_augmentation for other in deeper)] == [4, 1, 1]
    assert run.train.ema_decay is not None
    assert run.train.epochs is not None
    alpha = (1 - 0.99998) * run.train.batch_size * 32 / run.train.epochs
    assert 1 - run.train.ema_decay**32 == pytest.approx(alpha, rel=0.01)
    assert build_schedule(run, 100.0).size_at(0) is None
