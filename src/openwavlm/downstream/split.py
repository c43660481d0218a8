"""Training, validation and test rows of a fine-tuning."""

from collections.abc import Mapping, Sequence

import numpy as np

from openwavlm.downstream.settings import SplitBy, TaskData
from openwavlm.shards.index import Index
from openwavlm.shards.splits import split_hash

TRAINING, VALIDATION, TEST, UNUSED = range(4)


def unit_names(index: Index, split: SplitBy) -> list[str]:
    """Name of what each row is split by: its speaker, its recording (also where the speaker is unknown), or its key."""
    if split == "utterance":
        return list(index.keys)
    recordings = [index.recordings[number] for number in index.recording[:].tolist()]
    if split == "recording":
        return recordings
    speakers = [index.speakers[number] for number in index.speaker[:].tolist()]
    return [speaker or recording for speaker, recording in zip(speakers, recordings, strict=True)]


def speaker_names(index: Index) -> list[str]:
    """Speaker of each row as in the shards' JSON, without its source; empty where unknown."""
    return [index.speakers[number].partition("/")[2] for number in index.speaker[:].tolist()]


def split_parts(
    indexes: Mapping[str, Index], used: Mapping[str, np.ndarray], data: TaskData, split: SplitBy
) -> dict[str, np.ndarray]:
    """Part of each row: `TRAINING`, `VALIDATION`, `TEST` or `UNUSED`, int8 (rows,) by name of the set.

    A name's hash decides: below `validation_share` it is validated on, from 1 − `test_share` on it is tested on. A share above 0 holds out
    at least one name, that with the smallest or the largest hash.

    Args:
        indexes: Sources, validation and test sets.
        used: bool (rows,) of each: rows with a target.

    Raises:
        ValueError: If a named speaker does not occur, or no part of a share above 0, or no training part, can be made.
    """
    parts = {name: np.full(len(index), UNUSED, dtype=np.int8) for name, index in indexes.items()}
    for name in data.validation:
        parts[name][used[name]] = VALIDATION
    for name in data.test:
        parts[name][used[name]] = TEST
    named = {**dict.fromkeys(data.validation_speakers, VALIDATION), **dict.fromkeys(data.test_speakers, TEST)}
    both = sorted(set(data.validation_speakers) & set(data.test_speakers))
    if both:
        raise ValueError(
            f"a speaker is validated on or tested on, but {both[0]} is in data.validation_speakers and data.test_speakers"
        )
    speakers = {name: speaker_names(indexes[name]) for name in data.sources}
    absent = sorted(set(named).difference(*speakers.values()))
    if absent:
        known = ", ".join(sorted(set().union(*speakers.values()))[:10])
        raise ValueError(
            f"data.validation_speakers and data.test_speakers must be in data.sources, but {absent[0]} is not: there are {known}"
        )
    names = {name: unit_names(indexes[name], split) for name in data.sources}
    free = {
        unit
        for name in data.sources
        for unit, speaker, use in zip(names[name], speakers[name], used[name], strict=True)
        if use and speaker not in named
    }
    of_unit = _by_hash(free, data)
    for name in data.sources:
        of_row = [
            named.get(speaker, of_unit.get(unit, UNUSED)) for unit, speaker in zip(names[name], speakers[name], strict=True)
        ]
        parts[name] = np.where(used[name], np.array(of_row, dtype=np.int8), UNUSED).astype(np.int8)
    if not any((parts[name] == TRAINING).any() for name in data.sources):
        raise ValueError("no row is left to train on: lower data.validation_share or data.test_share, or name fewer speakers")
    return parts


def _by_hash(names: set[str], data: TaskData) -> dict[str, int]:
    held_out = int(data.validation_share > 0) + int(data.test_share > 0)
    if held_out and len(names) <= held_out:
        raise ValueError(
            f"{held_out} held-out part{'s' if held_out > 1 else ''} and a training part need at least {held_out + 1} names to split by, "
            f"but there are {len(names)}: set data.validation_share=0 or data.test_share=0, add speakers, or split by data.split=utterance"
        )
    ordered = sorted(names, key=lambda name: split_hash(name, data.split_seed))
    place = {name: split_hash(name, data.split_seed) / 2**64 for name in ordered}
    found = dict.fromkeys(ordered, TRAINING)
    for name in ordered:
        if place[name] < data.validation_share:
            found[name] = VALIDATION
        elif place[name] >= 1 - data.test_share:
            found[name] = TEST
    if data.test_share and TEST not in found.values():
        found[ordered[-1]] = TEST
    if data.validation_share and VALIDATION not in found.values():
        found[ordered[0]] = VALIDATION
    if ordered and TRAINING not in found.values():
        found[ordered[len(ordered) // 2]] = TRAINING
    return found


def shared_speakers(indexes: Mapping[str, Index], parts: Mapping[str, np.ndarray], held_out: Sequence[int]) -> list[str]:
    """Speakers with rows both in the training part and in a part of `held_out`, in order."""
    trained, tested = set[str](), set[str]()
    for name, index in indexes.items():
        for speaker, part in zip(index.speaker[:].tolist(), parts[name].tolist(), strict=True):
            if speaker and part == TRAINING:
                trained.add(index.speakers[speaker])
            elif speaker and part in held_out:
                tested.add(index.speakers[speaker])
    return sorted(trained & tested)
