"""timm's RandAugment: operation by operation, and how often each is drawn."""

import math

import numpy as np
import pytest
import timm.data.auto_augment
from photographs import photograph
from PIL import Image

from resnet_train.config.augment import TimmRandAugmentConfig
from resnet_train.data import auto_augment, rng, timm_augment

TIMMS = timm.data.auto_augment


def config(magnitude: float, std: float = 0.0, operations: int = 1) -> TimmRandAugmentConfig:
    return TimmRandAugmentConfig(
        kind="timm-rand-augment", magnitude=magnitude, magnitude_std=std, operations=operations
    )


def test_operations_are_those_of_inc1() -> None:
    transform = TIMMS.rand_augment_transform("rand-m7-mstd0.5-inc1", {})
    assert [op.name for op in transform.ops] == list(timm_augment.OPERATIONS)
    assert (transform.num_layers, {(op.prob, op.magnitude, op.magnitude_std) for op in transform.ops}) == (
        2,
        {(0.5, 7, 0.5)},
    )


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("magnitude", [0.0, 3.3, 7.0, 10.0])
def test_edited_images_equal_timms(magnitude: float, sign: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TIMMS, "_randomly_negate", lambda value: sign * value)
    image = photograph(48, 48)
    hparams = {"img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC, "magnitude_std": 0}
    for number, name in enumerate(timm_augment.OPERATIONS):
        if (name, magnitude) == ("PosterizeIncreasing", 10.0):
            continue  # timm would keep no bit, which Pillow refuses
        # which, whether, two of which the first makes the deviation 0, and the sign
        draws = np.array([[(number + 0.5) / len(timm_augment.OPERATIONS), 0.9, 0.0, 0.5, 0.5 + 0.1 * sign]])
        edits = auto_augment.plan(config(magnitude), draws, 48)
        edited = np.array(image)[None]
        auto_augment.apply(edited, edits)
        theirs = TIMMS.AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=hparams)(image)
        assert np.array_equal(edited[0], np.asarray(theirs)), (name, edits.magnitudes)


def test_grey_images_are_edited() -> None:
    grey = np.array(photograph(32, 32).convert("L")).reshape(1, 32, 32, 1)
    for number in range(len(timm_augment.OPERATIONS)):
        edits = auto_augment.Edits(np.array([[len(auto_augment.OPERATIONS) + number]]), np.array([[1.0]]))
        auto_augment.apply(np.array(grey), edits)


def test_draws_are_uniform_normal_and_left_out_half_of_the_time() -> None:
    n, cfg = 20_000, config(7.0, 0.5, 2)
    columns = auto_augment.number_of_draws(cfg)
    random = rng.uniform(0, np.zeros(n, np.int64), np.arange(n), columns)
    operations, is_applied, arguments = timm_augment.plan(cfg, random, 100)
    count = len(timm_augment.OPERATIONS)
    expected = 2 * n / count
    assert (abs(np.bincount(operations.ravel(), minlength=count) - expected) < 5 * math.sqrt(expected)).all()
    assert abs(is_applied.mean() - 0.5) < 5 * 0.5 / math.sqrt(2 * n)
    slopes = arguments[operations == list(timm_augment.OPERATIONS).index("ShearX")]
    levels = abs(slopes) / 0.03
    assert abs(levels.mean() - 7) < 5 * 0.5 / math.sqrt(len(levels))
    assert abs(levels.std() - 0.5) < 0.05
    assert abs((slopes < 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(len(slopes))
    # What is left out is no operation at all.
    assert ((auto_augment.plan(cfg, random, 100).operations == 0) == ~is_applied).all()
