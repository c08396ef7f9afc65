"""Random numbers and permutations as pure functions of their keys: no generator, no state, no order of calls.

A counter-based generator (Salmon et al. 2011): the finaliser of SplitMix64 (Steele et al. 2014, table 1) absorbs the
keys one after the other.
"""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_Words = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniform(seed: int, epoch: Ints, index: Ints, count: int) -> Floats:
    """[n] epochs and [n] indices -> [n, count] numbers in [0, 1), each a function of (seed, epoch, index, column)."""
    key = _absorb(_absorb(_absorb(_words(0), _words(seed)), _words(epoch)), _words(index))
    words = _absorb(key[..., None], np.arange(count, dtype=np.uint64))
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(seed: int, epoch: int, n: int) -> Ints:
    """The order of `n` samples in an epoch, int64 [n]. Independent of the numbers of `uniform`."""
    key = _absorb(_absorb(_words(1), _words(seed)), _words(epoch))
    index = np.arange(n, dtype=np.uint64)
    low = np.uint64((1 << n.bit_length()) - 1)
    # The index is in the lowest bits of each word, so sorting the words sorts it along: much faster than argsort.
    return (np.sort(_absorb(key, index) & ~low | index) & low).astype(np.int64)


def seeds(seed: int, numbers: Ints) -> list[int]:
    """A seed for each of `numbers`, for torch's generator. Independent of `uniform` and `permutation`."""
    return [int(word >> np.uint64(1)) for word in _absorb(_absorb(_words(2), _words(seed)), _words(numbers))]


def _words(values: int | Ints) -> _Words:
    return np.atleast_1d(np.asarray(values)).astype(np.uint64)


def _absorb(key: _Words, value: _Words) -> _Words:
    """A new key from a key and a value. Unsigned arithmetic wraps, as the algorithm requires."""
    x = (key ^ value) * _GOLDEN + _GOLDEN
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
