"""Keyed random numbers: every draw is a pure function of (seed, purpose, source, epoch, micro-batch), never of a rank or a worker.

The words are raw Philox-4x64 outputs (Salmon et al. 2011) of NumPy's bit generator, whose stream is fixed across NumPy versions
and machines; all derived integers use integer arithmetic only.
"""

import hashlib
from functools import lru_cache

import numpy as np

_MASK_64 = (1 << 64) - 1


@lru_cache(maxsize=4096)
def stable_hash(text: str) -> int:
    """64-bit hash of a text, equal on every machine and in every process (unlike `hash`)."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def words(seed: int, purpose: str, count: int, *, source: int = 0, epoch: int = 0, micro: int = 0) -> np.ndarray:
    """Draws raw 64-bit words, uint64 (count,).

    Args:
        seed: The run's seed.
        purpose: Use of the numbers (`"mask.starts"`, `"mix.partner"`, …); purposes never share numbers.
        count: Number of words.
        source: Stable hash of the data source's name.
        epoch: Data epoch of that source.
        micro: Identity of the micro-batch within the epoch (stream and index).
    """
    key = np.array([seed & _MASK_64, stable_hash(purpose)], dtype=np.uint64)
    counter = np.array([0, micro & _MASK_64, source & _MASK_64, epoch & _MASK_64], dtype=np.uint64)
    return np.random.Philox(key=key, counter=counter).random_raw(count)


def uniform(raw: np.ndarray) -> np.ndarray:
    """Maps words to float64 in [0, 1) with 53 bits."""
    return (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53


def integers(raw: np.ndarray, high: np.ndarray | int) -> np.ndarray:
    """Maps words to int64 in [0, high), 0 < high < 2³² (bias below 2⁻³² · high)."""
    return (((raw >> np.uint64(32)) * np.asarray(high).astype(np.uint64)) >> np.uint64(32)).astype(np.int64)


def permutation(raw: np.ndarray) -> np.ndarray:
    """Permutation of len(raw) items by a stable sort of the words; int64."""
    return np.argsort(raw, kind="stable")
