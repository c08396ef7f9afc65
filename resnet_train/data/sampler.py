"""The order of training samples.

Samples form one endless sequence: position p is sample `permutation(seed, p // n)[p % n]` of epoch p // n. Step s takes
the global batch at positions [s * B, (s + 1) * B). It is cut into `grad_accum_steps * ranks` equal micro-batches; rank
r takes micro-batch a * ranks + r in accumulation pass a. So each sample is seen once in an epoch at any number of ranks
and workers, and training can start at any step.

With repeated augmentation (Hoffer et al. 2020) a batch holds B / m samples m times: all of them, then all again with
another augmentation. A micro-batch holds copies of a sample only where there are fewer micro-batches than copies.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from resnet_train.data import rng
from resnet_train.data.rng import Ints


class Samples(NamedTuple):
    """The samples of a batch."""

    epochs: Ints
    """[n]: how often each sample was seen before. Its augmentation is drawn from this number and its index."""
    indices: Ints
    """[n]."""


@dataclass(frozen=True)
class Sampler:
    """The endless order of `n` samples, and the batches of one of `ranks` ranks."""

    seed: int
    n: int
    batch_size: int
    """Samples of a step, over all ranks."""
    grad_accum_steps: int = 1
    rank: int = 0
    ranks: int = 1
    repeat: int = 1
    """Copies of each sample in a batch."""

    @property
    def micro_batch_size(self) -> int:
        """Samples of one rank in one accumulation pass."""
        return self.batch_size // (self.grad_accum_steps * self.ranks)

    @property
    def rank_batch_size(self) -> int:
        """Samples of one rank in one step."""
        return self.micro_batch_size * self.grad_accum_steps

    def batch(self, step: int) -> Samples:
        """The global batch of a step."""
        return self._at(step * self.batch_size + np.arange(self.batch_size))

    def rank_samples(self, step: int) -> Samples:
        """This rank's samples of a step: its micro-batches, one after the other."""
        first = step * self.batch_size + self.rank * self.micro_batch_size
        starts = first + self.micro_batch_size * self.ranks * np.arange(self.grad_accum_steps)
        return self._at((starts[:, None] + np.arange(self.micro_batch_size)).ravel())

    def all_rank_indices(self, step: int) -> Ints:
        """[ranks, rank_batch_size]: the indices of each rank's `rank_samples`."""
        micro_batches = self.batch(step).indices.reshape(self.grad_accum_steps, self.ranks, self.micro_batch_size)
        return micro_batches.swapaxes(0, 1).reshape(self.ranks, -1)

    def seeds(self, step: int) -> list[int]:
        """A seed for each of this rank's micro-batches: of the micro-batch, whichever rank takes it."""
        first = step * self.grad_accum_steps * self.ranks + self.rank
        return rng.seeds(self.seed, first + self.ranks * np.arange(self.grad_accum_steps))

    def _at(self, positions: Ints) -> Samples:
        samples_per_batch = self.batch_size // self.repeat
        steps, places = np.divmod(positions, self.batch_size)
        copies, places = np.divmod(places, samples_per_batch)
        epochs, places = np.divmod(steps * samples_per_batch + places, self.n)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            indices[epochs == epoch] = _order(self.seed, int(epoch), self.n)[places[epochs == epoch]]
        return Samples(epochs * self.repeat + copies, indices)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> Ints:
    return rng.permutation(seed, epoch, n)
