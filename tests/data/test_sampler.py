"""The order of samples."""

from collections import Counter

import numpy as np
import pytest

from resnet_train.data.sampler import Sampler


def test_every_sample_is_taken_once_in_an_epoch() -> None:
    sampler = Sampler(seed=1, n=40, batch_size=16)
    batches = [sampler.batch(step) for step in range(5)]  # 80 samples: two epochs, the first ends inside a batch
    pairs = Counter((epoch, index) for batch in batches for epoch, index in zip(*batch, strict=True))
    assert pairs == Counter((epoch, index) for epoch in (0, 1) for index in range(40))
    small = Sampler(seed=1, n=3, batch_size=8).batch(0)  # fewer samples than a batch has
    assert Counter(small.indices.tolist()) == {int(i): 3 if i in small.indices[6:] else 2 for i in range(3)}


@pytest.mark.parametrize(("ranks", "grad_accum_steps"), [(1, 4), (2, 2), (4, 1), (2, 4)])
def test_the_global_batch_does_not_depend_on_ranks_and_accumulation(ranks: int, grad_accum_steps: int) -> None:
    global_batch = Sampler(seed=2, n=50, batch_size=16).batch(7)
    samplers = [Sampler(2, 50, 16, grad_accum_steps, rank, ranks) for rank in range(ranks)]
    rank_indices = [sampler.rank_samples(7).indices for sampler in samplers]
    micro_batches = np.stack(rank_indices).reshape(ranks, grad_accum_steps, -1).swapaxes(0, 1)
    assert np.array_equal(micro_batches.ravel(), global_batch.indices)
    assert np.array_equal(samplers[0].all_rank_indices(7), rank_indices)


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_copies_of_repeated_augmentation_go_to_different_micro_batches(ranks: int) -> None:
    """Hoffer et al. 2020; torchvision's sampler also gives the copies of an image to different ranks."""
    n, global_sampler, without_copies = 50, Sampler(3, 50, 32, repeat=4), Sampler(3, 50, 8)
    samplers = [Sampler(3, n, 32, 1, rank, ranks, repeat=4) for rank in range(ranks)]
    pairs = []
    for step in range(25):  # 200 samples: 4 epochs of 50
        epochs, indices = global_sampler.batch(step)
        rank_batches = [sampler.rank_samples(step) for sampler in samplers]
        assert np.array_equal(np.concatenate([batch.indices for batch in rank_batches]), indices)
        assert np.array_equal(np.concatenate([batch.epochs for batch in rank_batches]), epochs)
        assert np.array_equal(indices, np.tile(without_copies.batch(step).indices, 4))
        if ranks == 8:
            assert all(len(set(batch.indices)) == 4 for batch in rank_batches)
        pairs += list(zip(epochs.tolist(), indices.tolist(), strict=True))
    assert sorted(pairs) == [(epoch, index) for epoch in range(16) for index in range(n)]
