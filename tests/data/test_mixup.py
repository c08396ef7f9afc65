"""Random erasing, mixup and cutmix against torchvision's."""

import math

import numpy as np
import pytest
import timm.data.mixup
import timm.loss
import torch
import torchvision.transforms.v2 as v2
from torch import nn

from resnet_train.config.augment import AugmentConfig
from resnet_train.data import mixup, rng


def random_numbers(n: int, columns: int) -> rng.Floats:
    return rng.uniform(0, np.zeros(n, np.int64), np.arange(n), columns)


def test_erasing_equals_torchvisions() -> None:
    images = torch.randn(50, 3, 20, 30).to(memory_format=torch.channels_last)
    boxes = torch.from_numpy(mixup.erase_boxes(0.7, random_numbers(50, mixup.ERASE_DRAWS), 20, 30))
    erased = mixup.erase(images, boxes)
    assert erased.is_contiguous(memory_format=torch.channels_last)
    for image, box, result in zip(images, boxes.tolist(), erased, strict=True):
        left, top, right, bottom = box
        wanted = v2.functional.erase(image, top, left, bottom - top, right - left, torch.zeros(3, 1, 1))
        assert torch.equal(result, wanted)
    assert 20 < (boxes[:, 2] > 0).sum() < 48


@pytest.mark.parametrize("size", [(20, 30), (160, 8)])  # with the second, many of the ten tries fail
def test_erased_boxes_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    n, (height, width) = 4000, size
    ours = torch.from_numpy(mixup.erase_boxes(0.8, random_numbers(n, mixup.ERASE_DRAWS), height, width)).double()
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
def test_symmetric_beta_has_the_beta_distribution(alpha: float) -> None:
    n = 20_000
    ours = torch.tensor([mixup.symmetric_beta(alpha, u, v) for u, v in random_numbers(n, 2)], dtype=torch.double)
    exact = torch.distributions.Beta(torch.tensor(alpha, dtype=torch.double), torch.tensor(alpha, dtype=torch.double))
    torch.manual_seed(0)
    theirs, points = exact.sample((n,)), torch.tensor([1e-6, 1e-3, *(i / 20 for i in range(1, 20)), 0.999, 1 - 1e-6])
    difference = (ours[:, None] <= points).double().mean(0) - (theirs[:, None] <= points).double().mean(0)
    assert difference.abs().max() < 5 * math.sqrt(0.5 / n)
    assert abs(ours.var() - exact.variance) < 0.02 * exact.variance + 1e-3


@pytest.mark.parametrize("name", ["mixup", "cutmix"])
def test_mixing_equals_torchvisions(name: str) -> None:
    images, labels = torch.randn(6, 3, 20, 30).to(memory_format=torch.channels_last), torch.arange(6)
    theirs = (v2.MixUp if name == "mixup" else v2.CutMix)(num_classes=6)
    cfg, weights = AugmentConfig.model_validate({name: 0.7}), []
    for seed in range(40):
        params = mixup.plan(cfg, seed, 20, 30)
        mixed, weight = mixup.mix(images, torch.from_numpy(params))
        box = tuple(map(int, params[1:]))
        drawn = {"labels": labels, "batch_size": 6, "lam": float(params[0]), "box": box, "lam_adjusted": float(weight)}
        torch.testing.assert_close(mixed, theirs.transform(images, drawn), rtol=0, atol=1e-6)
        assert mixed.is_contiguous(memory_format=torch.channels_last)
        area = (box[2] - box[0]) * (box[3] - box[1]) / 600 if name == "cutmix" else 1 - float(params[0])
        assert weight.item() == pytest.approx(1 - area, abs=1e-6)
        one_hot = nn.functional.one_hot(labels).float()
        wanted = theirs.transform(labels, drawn)
        torch.testing.assert_close(
            weight * one_hot + (1 - weight) * mixup.neighbours(one_hot), wanted, rtol=0, atol=1e-6
        )
        weights.append(float(weight))
    assert len(set(weights)) > 30


def test_boxes_of_cutmix_are_distributed_as_torchvisions() -> None:
    n, theirs = 4000, v2.CutMix(num_classes=2, alpha=1.0)
    torch.manual_seed(0)
    boxes = torch.tensor([theirs.make_params([torch.zeros(3, 32, 48)])["box"] for _ in range(n)]).double()
    plans = [mixup.plan(AugmentConfig(cutmix=1.0), seed, 32, 48) for seed in rng.seeds(0, np.arange(n))]
    ours = torch.from_numpy(np.stack(plans)[:, 1:])
    values = torch.arange(49)[:, None, None]
    difference = (ours <= values).double().mean(1) - (boxes <= values).double().mean(1)
    assert difference.abs().max() < 5 * math.sqrt(0.5 / n)


def test_with_mixup_and_cutmix_each_batch_draws_one_of_them() -> None:
    seeds = rng.seeds(0, np.arange(1000))
    both = [mixup.plan(AugmentConfig(mixup=0.2, cutmix=1.0), seed, 32, 32) for seed in seeds]
    alone = [
        [mixup.plan(cfg, seed, 32, 32) for seed in seeds]
        for cfg in (AugmentConfig(mixup=0.2), AugmentConfig(cutmix=1.0))
    ]
    is_mixup = [np.array_equal(params, first) for params, first in zip(both, alone[0], strict=True)]
    assert all(a or np.array_equal(b, c) for a, b, c in zip(is_mixup, both, alone[1], strict=True))
    assert abs(sum(is_mixup) - 500) < 80


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("threshold", [None, 0.2])
@pytest.mark.parametrize("weight", [None, 0.0, 0.15, 0.5, 0.93, 1.0])
def test_binary_cross_entropy_is_timms(weight: float | None, threshold: float | None, smoothing: float) -> None:
    """Of two images, of which each is mixed with the other, in either implementation."""
    if threshold is not None and smoothing:
        return  # refused in a recipe
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 7, requires_grad=True), torch.tensor([5, 2])
    own = None if weight is None else torch.tensor(weight)
    ours = mixup.binary_cross_entropy(logits, labels, own, smoothing, threshold)
    targets = timm.data.mixup.mixup_target(labels, 7, 1.0 if weight is None else weight, smoothing)
    theirs = timm.loss.BinaryCrossEntropy(smoothing, target_threshold=threshold)(logits, targets)
    torch.testing.assert_close(ours, theirs)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*gradients)
