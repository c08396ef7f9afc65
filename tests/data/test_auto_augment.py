"""TrivialAugment and RandAugment against torchvision's."""

import math

import numpy as np
import pytest
import torchvision.transforms.v2 as v2
from photographs import photograph

from resnet_train.config.augment import RandAugmentConfig, TrivialAugmentConfig
from resnet_train.data import auto_augment, rng

WIDE = TrivialAugmentConfig(kind="trivial-augment")
RAND = RandAugmentConfig(kind="rand-augment", operations=2, magnitude=17)
THEIRS = {
    WIDE: v2.TrivialAugmentWide(interpolation=v2.InterpolationMode.BILINEAR),
    RAND: v2.RandAugment(2, 17, interpolation=v2.InterpolationMode.BILINEAR),
}


def random_numbers(n: int, columns: int) -> rng.Floats:
    return rng.uniform(0, np.zeros(n, np.int64), np.arange(n), columns)


@pytest.mark.parametrize("cfg", [WIDE, RAND], ids=lambda cfg: cfg.kind)
def test_operations_and_magnitudes_are_those_of_torchvision_and_uniform(
    cfg: TrivialAugmentConfig | RandAugmentConfig,
) -> None:
    n, space = 40_000, THEIRS[cfg]._AUGMENTATION_SPACE
    assert list(space) == list(auto_augment.OPERATIONS)
    edits = auto_augment.plan(cfg, random_numbers(n, auto_augment.number_of_draws(cfg)), 90)
    operations, magnitudes = edits.operations.ravel(), edits.magnitudes.ravel()
    counts = np.bincount(operations, minlength=14)
    assert (abs(counts - len(operations) / 14) < 5 * math.sqrt(len(operations) / 14)).all()
    for number, (levels_of, signed) in enumerate(space.values()):
        levels = levels_of(31, 90, 90)
        theirs = np.zeros(1) if levels is None else np.atleast_1d(levels[slice(None) if cfg is WIDE else 17].double())
        theirs = np.concatenate([theirs, -theirs]) if signed else theirs
        values, times = np.unique(magnitudes[operations == number], return_counts=True)
        assert np.array_equal(values, np.unique(theirs + 0.0)), auto_augment.OPERATIONS[number]
        expected = counts[number] * np.array([(theirs == value).sum() for value in values]) / len(theirs)
        assert (abs(times - expected) < 5 * np.sqrt(expected) + 1).all(), auto_augment.OPERATIONS[number]


@pytest.mark.parametrize("cfg", [WIDE, RAND], ids=lambda cfg: cfg.kind)
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_edited_images_equal_torchvisions(cfg: TrivialAugmentConfig | RandAugmentConfig, mode: str) -> None:
    image = photograph(48, 48).convert(mode)
    pixels = np.asarray(image).reshape(48, 48, -1)
    edits = auto_augment.plan(cfg, random_numbers(150, auto_augment.number_of_draws(cfg)), 48)
    assert set(edits.operations.ravel()) == set(range(14))
    for operations, magnitudes in zip(*edits, strict=True):
        theirs = image
        for operation, magnitude in zip(operations, magnitudes, strict=True):
            theirs = THEIRS[cfg]._apply_image_or_video_transform(
                theirs,
                auto_augment.OPERATIONS[operation],
                float(magnitude),
                v2.InterpolationMode.BILINEAR,
                THEIRS[cfg]._fill,
            )
        edited = np.array(pixels)[None]
        auto_augment.apply(edited, auto_augment.Edits(operations[None], magnitudes[None]))
        assert np.array_equal(edited[0], np.asarray(theirs).reshape(48, 48, -1)), (operations, magnitudes)
