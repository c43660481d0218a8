"""Held-out rows, chosen by a hash of the speaker (else the recording) and a share, which is settled once by the speakers."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.index import Index

_BLOCK_ROWS = 2**20


def split_hash(name: str, split_seed: int = 0) -> int:
    """64-bit hash of a speaker (`SOURCE/SPEAKER`), by which it is held out; of a recording where the speaker is unknown."""
    return stable_hash(f"{split_seed}/split/{name}")


def split_names(index: Index, rows: np.ndarray | None = None) -> list[str]:
    """Names that a split divides, each once: speakers, and recordings of rows without a speaker; of `rows`, bool (rows,), or of all."""
    chosen = slice(None) if rows is None else rows
    speaker, recording = index.speaker[chosen], index.recording[chosen]
    of_speakers = np.flatnonzero(np.bincount(speaker, minlength=1))
    speakers, recordings = index.speakers, index.recordings
    unknown = np.unique(recording[speaker == 0])
    return [speakers[speaker] for speaker in of_speakers if speaker] + [recordings[recording] for recording in unknown]


def settled_share(indexes: Sequence[Index], *, share: float, split_seed: int, key: str) -> float:
    """Share by which `validation_rows` holds out a speaker and leaves one; a recording where the speaker is unknown.

    A share that holds out no speaker is raised until it holds out the speaker with the smallest hash, and one that holds out all of them is
    lowered until it leaves the one with the largest. Who splits by the result records it: it is a constant from then on, so that added
    data never moves a speaker.

    Args:
        indexes: All shard sets that are split together.
        share: Expected share of the speakers, in [0, 1); 0 holds out none.
        split_seed: Seed of the split.
        key: Name of the setting, for errors.

    Raises:
        ValueError: If the share is outside of its range, or above 0 with fewer than two speakers.
    """
    _check_share(share)
    if share == 0:
        return share
    names = {name for index in indexes for name in split_names(index)}
    if len(names) < 2:
        where = ", ".join(str(index.path) for index in indexes)
        raise ValueError(
            f"a held-out share above 0 needs at least two speakers (or recordings of unknown speakers), but {where} has {len(names)} and "
            f"{key} is {share:g}: set {key}=0, or add speakers"
        )
    hashes = [split_hash(name, split_seed) for name in names]
    smallest, largest = min(hashes), max(hashes)
    if smallest >= _threshold(share):
        return math.nextafter((smallest + 1) / 2**64, 1.0)
    if largest < _threshold(share):
        return math.nextafter(largest / 2**64, 0.0)
    return share


def settlement(asked: float, share: float, *, kept: bool, key: str) -> str:
    """Clause on a `settled_share`, `kept` from an earlier launch or settled now; "" if it is the share that `key` asked for."""
    if asked == share:
        return ""
    if kept:
        return f"the run keeps the held-out share of {share:.4g} that an earlier launch settled from {key}={asked:g}"
    if asked < share:
        return f"no speaker has a hash below {key}={asked:g}: the one with the smallest is held out, a share of {share:.4g}"
    return f"all speakers have a hash below {key}={asked:g}: the one with the largest is trained on, a share of {share:.4g}"


def _check_share(share: float) -> None:
    if not 0 <= share < 1:
        raise ValueError(f"the validation share must lie in [0, 1), but is {share}")


def _threshold(share: float) -> int:
    return int(share * 2.0**64)


def _held_out(names: list[str], share: float, split_seed: int) -> np.ndarray:
    threshold = _threshold(share)
    return np.array([split_hash(name, split_seed) < threshold for name in names], dtype=bool)


def validation_rows(index: Index, *, share: float, split_seed: int) -> np.ndarray:
    """Marks the rows of held-out speakers: those with a hash below the share, a function of the name alone.

    Args:
        index: The shard set.
        share: Share below which a hash is held out, in [0, 1), of `settled_share` or of a record; else a ValueError.
        split_seed: Seed of the split; separate from the run's seed, so that runs with other seeds hold out the same speakers.

    Returns:
        bool (rows,), True = validation.
    """
    _check_share(share)
    held_out = _held_out(index.speakers, share, split_seed)[index.speaker[:]]
    unknown = np.flatnonzero(index.speaker[:] == 0)
    if len(unknown):
        recordings, which = np.unique(index.recording[unknown], return_inverse=True)
        names = index.recordings
        held_out[unknown] = _held_out([names[recording] for recording in recordings], share, split_seed)[which]
    return held_out


def check_same_names(index: Index, bound: Mapping[str, str], what: str) -> None:
    """Raises a ValueError if speakers, recordings, sources or languages differ from those that `what` was fitted with.

    `bound` holds the `metadata` of the shard sets of the fit by fingerprint; other sets are not checked.
    """
    if index.fingerprint in bound and bound[index.fingerprint] != index.metadata:
        raise ValueError(
            f"the speakers, recordings, sources or languages of {index.path} have changed since {what} was fitted on it, so speakers that "
            "are held out now may have been fitted on: restore the shard set's index, or fit again"
        )


def audio_in(pcm: np.ndarray, index: Index, rows: np.ndarray | None = None) -> np.ndarray:
    """Marks audio that a shard set contains, equal in every sample, as a row or as a clip inside a joined row; bool (audios,).

    Args:
        pcm: uint64 (audios,), identities as in the index; held in memory.
        index: A shard set of any size, read once.
        rows: bool (rows of `index`,), rows to search; None for all rows.
    """
    wanted, place_of = np.unique(pcm, return_inverse=True)
    found = np.zeros(len(wanted), dtype=bool)
    members = index.members
    for audio, row in ((index.pcm, None), (members["pcm"], members["row"])):
        for first in range(0, len(audio) if len(wanted) else 0, _BLOCK_ROWS):  # millions of rows are never sorted or copied whole
            block = slice(first, first + _BLOCK_ROWS)
            place = np.minimum(np.searchsorted(wanted, audio[block]), len(wanted) - 1)
            equal = wanted[place] == audio[block]
            if rows is not None:
                equal &= rows[block] if row is None else rows[row[block]]
            found[place[equal]] = True
    return found[place_of]


def shared_rows(index: Index, other: Index) -> np.ndarray:
    """Marks rows with audio (their own, or of a clip in a joined row) that `audio_in` finds in `other`; bool (rows of `index`,)."""
    members = index.members
    found = audio_in(np.concatenate([index.pcm, members["pcm"]]), other)
    shared, of_members = found[: len(index)], found[len(index) :]
    shared[members["row"][of_members]] = True
    return shared
