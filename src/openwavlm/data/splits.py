"""Which rows are held out: a hash of the speaker (else the recording) decides, so added data never moves a speaker."""

import numpy as np

from openwavlm.data.index import Index
from openwavlm.randomness import stable_hash


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
