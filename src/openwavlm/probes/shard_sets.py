"""Probe sets from prepared shard sets and a table of phone times."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from openwavlm.data.index import Index
from openwavlm.data.reader import ShardReader
from openwavlm.frames import num_frames
from openwavlm.probes.alignments import Segment, frame_phones, inventory_of, read_tsv
from openwavlm.probes.sets import ProbeSet, ProbeUtterance


def read_phone_times(path: Path, *, fold_stress: bool = False) -> dict[str, list[Segment]]:
    """Segments of each recording, named by the table's path without its extension.

    Args:
        path: Table `path start end phone`.
        fold_stress: Whether ARPAbet's stress digits and capitals are dropped (`AH0`, `AH1` → `ah`) and `sp` becomes `sil`, so that
            tables of different origin have one inventory.
    """
    times = {str(PurePosixPath(name).with_suffix("")): segments for name, segments in read_tsv(path).items()}
    if not fold_stress:
        return times
    return {name: [segment._replace(phone=_folded(segment.phone)) for segment in segments] for name, segments in times.items()}


def _folded(phone: str) -> str:
    phone = phone.lower().rstrip("012")
    return "sil" if phone == "sp" else phone


def _by_ending(times: Mapping[str, Sequence[Segment]]) -> dict[str, Sequence[Segment]]:
    """Every ending of a path that only one path of the table has: a shard set may have been made from any folder above its files."""
    endings: dict[str, Sequence[Segment] | None] = {}
    for name, segments in times.items():
        parts = PurePosixPath(name).parts
        for place in range(len(parts)):
            ending = "/".join(parts[place:])
            endings[ending] = None if ending in endings else segments
    return {ending: segments for ending, segments in endings.items() if segments is not None} | dict(times)


def inventory(times: Mapping[str, Sequence[Segment]]) -> tuple[str, ...]:
    """All phones; silence counts as one."""
    return inventory_of(times)


def probe_set(shards: Path, times: Mapping[str, Sequence[Segment]], phones: Sequence[str]) -> ProbeSet:
    """The rows of a shard set that have phone times.

    Args:
        shards: Shard set whose `recording` is a path of the table without its extension, or the end of one.
        times: Segments by recording.
        phones: The inventory.

    Raises:
        ValueError: If no row has phone times.
    """
    index = Index.open(shards)
    reader = ShardReader(index)
    endings = _by_ending(times)
    utterances = []
    for row in range(len(index)):
        recording = index.recordings[int(index.recording[row])].split("/", 1)[-1]
        segments = endings.get(recording)
        frames = num_frames(int(index.num_samples[row]))
        if segments is None or frames == 0:
            continue
        speaker = index.speakers[int(index.speaker[row])] or recording
        labels = frame_phones(segments, frames, phones)
        if (labels >= 0).any():
            utterances.append(ProbeUtterance(partial(_audio, reader, row), np.asarray(labels), speaker, recording))
    if not utterances:
        raise ValueError(f"no recording of {shards} has phone times: the table's paths must end in the index's recordings")
    return ProbeSet(tuple(utterances), tuple(phones))


def _audio(reader: ShardReader, row: int) -> np.ndarray:
    return reader.read(row)
