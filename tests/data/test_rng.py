"""Random numbers that are functions of their keys."""

import math

import numpy as np

from resnet_train.data import rng


def test_numbers_are_functions_of_seed_epoch_index_and_column_alone() -> None:
    epochs, indices = np.array([0, 0, 5]), np.array([7, 8, 7])
    together = rng.uniform(3, epochs, indices, 6)
    for i in range(3):
        assert np.array_equal(rng.uniform(3, epochs[[i]], indices[[i]], 4)[0], together[i, :4])
    assert len(np.unique(together)) == together.size
    assert not np.intersect1d(together, rng.uniform(4, epochs, indices, 6)).size


def test_numbers_are_uniform_and_uncorrelated() -> None:
    numbers = rng.uniform(1, np.zeros(20000, np.int64), np.arange(20000), 4)
    counts = np.stack([np.histogram(column, 50, (0, 1))[0] for column in numbers.T])
    assert (abs(counts - 400) < 6 * math.sqrt(400)).all()
    correlation = np.corrcoef(np.concatenate([numbers[:-1], numbers[1:]], axis=1).T) - np.eye(8)
    assert abs(correlation).max() < 5 / math.sqrt(20000)


def test_permutations_are_permutations_and_differ() -> None:
    orders = [rng.permutation(seed, epoch, 1000) for seed in (0, 1) for epoch in (0, 1)]
    for i, order in enumerate(orders):
        assert np.array_equal(np.sort(order), np.arange(1000))
        assert all((order == other).mean() < 0.02 for other in orders[:i])
