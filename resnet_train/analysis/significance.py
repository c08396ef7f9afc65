"""Whether two networks differ in an error by more than chance. No torch."""

import math
import statistics
from collections.abc import Mapping

from resnet_train.analysis.groups import Group

LEVEL = 0.05
"""A difference is significant where chance alone would make one as large in less than 1 of 20 cases."""


def differs_significantly(one: Group, other: Group, error: str) -> bool:
    """Whether two groups differ significantly in an error: `train_error`, `clean_train_error` or `val_error_top1`.

    Several seeds each: a t-test over seeds, paired where both have the same seeds, else Welch's. A single seed on one
    side: Student's t-test with the variance of the other side; and the difference must also exceed the sampling error
    of the images. A single seed each, or seeds between which nothing varies: the sampling error alone, which does not
    account for seed-to-seed variation.
    """
    by_seed = one.by_seed(error), other.by_seed(error)
    seeds = [len(values) for values in by_seed]
    p_value = _t_test(*by_seed) if max(seeds) > 1 else None
    if p_value is not None and (p_value >= LEVEL or min(seeds) > 1):
        return p_value < LEVEL
    return _exceeds_sampling_error(
        statistics.mean(by_seed[0].values()),
        one.images(error),
        statistics.mean(by_seed[1].values()),
        other.images(error),
    )


def _t_test(one: Mapping[int, float], other: Mapping[int, float]) -> float | None:
    """The p-value of a difference of means, from values by seed; at least one side has several.

    None without any variance, which a t-test would divide by: ties are common where there are few images.
    """
    from scipy import stats

    if one.keys() == other.keys():
        differences = [one[seed] - other[seed] for seed in one]
        if math.isclose(min(differences), max(differences), abs_tol=1e-9):
            return None
        return float(stats.ttest_1samp(differences, 0).pvalue)
    (mean, deviation, n), (other_mean, other_deviation, other_n) = _moments(one), _moments(other)
    if deviation == other_deviation == 0:
        return None
    test = stats.ttest_ind_from_stats(
        mean, deviation, n, other_mean, other_deviation, other_n, equal_var=min(n, other_n) == 1
    )
    return float(test.pvalue)


def _moments(by_seed: Mapping[int, float]) -> tuple[float, float, int]:
    values = list(by_seed.values())
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0, len(values)


def _exceeds_sampling_error(error: float, images: int, other_error: float, other_images: int) -> bool:
    """Whether two errors, in percent, are more than two standard errors of their difference apart."""
    p, q = _smoothed(error, images), _smoothed(other_error, other_images)
    return abs(p - q) > 2 * sampling_error(error, images, other_error, other_images)


def sampling_error(error: float, images: int, other_error: float, other_images: int) -> float:
    """The standard error of a difference of two errors, in percent, that were measured on so many images each.

    As a fraction, not in percent. Networks tend to get the same images wrong, so where both were measured on the same
    images the true standard error is rather smaller.
    """
    p, q = _smoothed(error, images), _smoothed(other_error, other_images)
    return math.sqrt(p * (1 - p) / (images + 2) + q * (1 - q) / (other_images + 2))


def _smoothed(error: float, images: int) -> float:
    """An error in percent as a fraction, with one more wrong and one more right image (Agresti and Caffo 2000).

    Without them, no wrong image would mean no uncertainty, and 0 against 4 wrong images would differ.
    """
    return (error / 100 * images + 1) / (images + 2)
