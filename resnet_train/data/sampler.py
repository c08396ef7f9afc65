"""The order of samples.

Samples form one endless stream: position p is sample `permutation(seed, p // n)[p % n]` of epoch p // n. Step s takes
the global batch at positions [s * B, (s + 1) * B), cut into `grad_accum_steps * ranks` equal shares; rank r's share of
pass a is number a * ranks + r. So every sample is seen once an epoch, whatever the number of ranks and workers, and any
step can be the first.

With repeated augmentation a batch is B / m samples m times over: all of them, then all again, otherwise augmented, so
that a share holds copies of a sample only where there are fewer shares than copies.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from resnet_train.data import rng
from resnet_train.data.rng import Ints


class Samples(NamedTuple):
    """Which samples a batch is made of."""

    epochs: Ints
    """How often each was seen before, which its augmentation is drawn from."""
    indices: Ints


@dataclass(frozen=True)
class Sampler:
    """The endless order of `n` samples, and its share for one of `ranks` ranks."""

    seed: int
    n: int
    batch_size: int
    grad_accum_steps: int = 1
    rank: int = 0
    ranks: int = 1
    repeat: int = 1
    """Copies of each sample in a batch."""

    def batch(self, step: int) -> Samples:
        """The global batch of a step."""
        return self._at(step * self.batch_size + np.arange(self.batch_size))

    @property
    def micro_batch_size(self) -> int:
        """Samples of one rank in one accumulation pass."""
        return self.batch_size // (self.grad_accum_steps * self.ranks)

    def all_rank_indices(self, step: int) -> Ints:
        """[ranks, grad_accum_steps * share]: the samples that each rank takes in a step, in the order of `own`."""
        shares = self.batch(step).indices.reshape(self.grad_accum_steps, self.ranks, self.micro_batch_size)
        return shares.swapaxes(0, 1).reshape(self.ranks, -1)

    def rank_samples(self, step: int) -> Samples:
        """This rank's samples of a step: its share of each accumulation pass, one after the other."""
        first = step * self.batch_size + self.rank * self.micro_batch_size
        starts = first + self.micro_batch_size * self.ranks * np.arange(self.grad_accum_steps)
        return self._at((starts[:, None] + np.arange(self.micro_batch_size)).ravel())

    def seeds(self, step: int) -> list[int]:
        """A seed for each of this rank's shares of a step; the share's, whichever rank it falls to."""
        share = step * self.grad_accum_steps * self.ranks + self.rank
        numbers = np.array([share + a * self.ranks for a in range(self.grad_accum_steps)])
        return rng.seeds(self.seed, numbers)

    def _at(self, positions: Ints) -> Samples:
        samples = self.batch_size // self.repeat
        steps, places = np.divmod(positions, self.batch_size)
        copies, places = np.divmod(places, samples)
        epochs, places = np.divmod(steps * samples + places, self.n)
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            indices[epochs == epoch] = _order(self.seed, int(epoch), self.n)[places[epochs == epoch]]
        return Samples(epochs * self.repeat + copies, indices)


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, n: int) -> Ints:
    return rng.permutation(seed, epoch, n)
