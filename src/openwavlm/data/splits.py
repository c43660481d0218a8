"""Which rows are held out: a hash of the speaker (else the recording) decides, so added data never moves a speaker."""

import numpy as np

from openwavlm.data.index import Index
from openwavlm.randomness import stable_hash

_BLOCK_ROWS = 2**20


def _held_out(names: list[str], share: float, split_seed: int) -> np.ndarray:
    threshold = int(share * 2.0**64)
    return np.array([stable_hash(f"{split_seed}/split/{name}") < threshold for name in names], dtype=bool)


def validation_rows(index: Index, *, share: float, split_seed: int) -> np.ndarray:
    """Marks the rows of held-out speakers.

    Args:
        index: The shard set.
        share: Expected share of the speakers that is held out, in [0, 1).
        split_seed: Seed of the split; apart from the run's seed, so that runs with other seeds hold out the same people.

    Returns:
        bool (rows,), True = validation.

    Raises:
        ValueError: If `share` is outside [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"the validation share must lie in [0, 1), but is {share}")
    held_out = _held_out(index.speakers, share, split_seed)[index.speaker[:]]
    unknown = np.flatnonzero(index.speaker[:] == 0)
    if len(unknown):
        recordings, which = np.unique(index.recording[unknown], return_inverse=True)
        names = index.recordings
        held_out[unknown] = _held_out([names[recording] for recording in recordings], share, split_seed)[which]
    return held_out


def shared_rows(index: Index, other: Index) -> np.ndarray:
    """Marks the rows whose audio another index has, to the sample, as rows or as clips inside joined ones.

    Args:
        index: The shard set whose rows are marked; the smaller one, for it is held in memory.
        other: The shard set that they are looked up in, of any size.

    Returns:
        bool (rows of `index`,).
    """
    members = index.members
    wanted = np.unique(np.concatenate([index.pcm, members["pcm"]]))
    if not len(wanted):
        return np.zeros(len(index), dtype=bool)
    found = np.zeros(len(wanted), dtype=bool)
    for audio in (other.pcm, other.members["pcm"]):
        for first in range(0, len(audio), _BLOCK_ROWS):  # millions of rows are passed through once and never sorted or copied
            block = audio[first : first + _BLOCK_ROWS]
            place = np.minimum(np.searchsorted(wanted, block), len(wanted) - 1)
            found[place[wanted[place] == block]] = True
    shared = np.isin(index.pcm, wanted[found])
    shared[members["row"][np.isin(members["pcm"], wanted[found])]] = True
    return shared
