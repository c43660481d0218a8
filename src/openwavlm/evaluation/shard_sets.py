"""Probe sets from prepared shard sets: rows with an alignment, and rows without phones to fit codebooks on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from openwavlm.audio.frames import FRAME_RATE_HZ, num_frames
from openwavlm.evaluation.phones.alignment_files import read_alignments
from openwavlm.evaluation.phones.alignments import Segment, folded, frame_phones, inventory_of, is_silence
from openwavlm.evaluation.phones.matching import Matches, match_rows
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance, in_turn, readable
from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader

_MOST_PHONES = 1000
inventory = inventory_of


def read_phone_times(path: Path, *, fold_stress: bool = False) -> dict[str, list[Segment]]:
    """Segments by recording; `fold_stress` folds phones by `arpabet`, so that tables of different origin have one inventory."""
    times = read_alignments(path)
    return {name: folded(times[name], "arpabet" if fold_stress else "none") for name in times}


def probe_set(shards: Path, times: Mapping[str, Sequence[Segment]], phones: Sequence[str]) -> ProbeSet:
    """Rows of a shard set that have phone times; rows of several joined clips are left out.

    Args:
        times: Segments by recording, assigned to rows by `matching.match_rows`.

    Raises:
        ValueError: If no row has phone times.
    """
    index = Index.open(shards)
    reader = ShardReader(index)
    utterances = []
    for row, clips in match_rows(index, times, joined=False).clips.items():
        segments = sorted(segment for clip in clips for segment in clip.segments(times[clip.name]))
        utterance = _utterance(reader, row, segments, phones)
        if (utterance.phones >= 0).any():
            utterances.append(utterance)
    if not utterances:
        raise ValueError(f"no recording of {shards} has phone times: the table's paths must end in the index's recordings")
    return ProbeSet(tuple(utterances), tuple(phones))


def _utterance(reader: ShardReader, row: int, segments: Sequence[Segment], phones: Sequence[str]) -> ProbeUtterance:
    """A row with a phone for every frame that a segment covers."""
    frames = num_frames(int(reader.index.num_samples[row]))
    return ProbeUtterance(partial(reader.read, row), frame_phones(segments, frames, phones), *_who(reader.index, row))


@dataclass(frozen=True, eq=False)
class Judged:
    """Held-out utterances of a shard set, with their rows and keys in the index and their folded phones with times in the row."""

    utterances: ProbeSet
    rows: tuple[int, ...]
    keys: tuple[str, ...]
    segments: tuple[tuple[Segment, ...], ...]
    matches: Matches


def judged_set(
    shards: Path,
    rows: np.ndarray,
    alignments: Mapping[str, list[Segment]] | None,
    *,
    folding: str = "none",
    with_silence: bool = True,
    seconds: float = 3600.0,
    max_unmatched_share: float = 0.05,
) -> Judged:
    """Chooses rows with an alignment, in turn from each speaker until there are enough seconds; only their alignments are read.

    Args:
        alignments: Segments by recording; None takes all rows, without phones.
        folding: One of `alignments.FOLDINGS`.
        seconds: Audio at most.
        max_unmatched_share: Largest share of the clips that may lack an alignment.

    Raises:
        ValueError: If too many rows have no alignment or cannot be read, an alignment file is damaged, no frame has a phone, or there
            are more than 1,000 different phones.
    """
    index = Index.open(shards)
    if alignments is None:
        matches = Matches({int(row): [] for row in rows}, [], [], [])
        alignments = {}
    else:
        matches = match_rows(index, alignments, rows)
        matches.check(max_unmatched_share, shards)
    chosen = _in_turn(index, sorted(matches.clips), seconds)
    segments = []
    for row in chosen:
        of_row = sorted(s for clip in matches.clips[row] for s in clip.segments(folded(alignments[clip.name], folding)))
        segments.append(tuple(s for s in of_row if with_silence or not is_silence(s.phone)))
    phones = inventory_of({str(row): of_row for row, of_row in zip(chosen, segments, strict=True)})
    if len(phones) > _MOST_PHONES:
        raise ValueError(
            f"units are compared with at most {_MOST_PHONES} phones, but the alignments have {len(phones)} names (for example "
            f"{phones[0]!r}): choose another tier, or a folding"
        )
    reader = ShardReader(index)
    made = [_utterance(reader, row, of_row, phones) for row, of_row in zip(chosen, segments, strict=True)]
    kept = readable(made)
    if alignments and not any((made[number].phones >= 0).any() for number in kept):
        raise ValueError(f"alignments must lie within the audio of {shards}, but no frame has a phone: compare their times")
    rows_kept = tuple(chosen[number] for number in kept)
    utterances = ProbeSet(tuple(made[number] for number in kept), phones)
    return Judged(utterances, rows_kept, tuple(index.keys[row] for row in rows_kept), tuple(segments[n] for n in kept), matches)


def _in_turn(index: Index, rows: Sequence[int], seconds: float) -> list[int]:
    """Rows with a frame, one of each speaker after the other, as many as fit; at least one."""
    frames = {row: num_frames(int(index.num_samples[row])) for row in rows}
    usable = sorted(row for row in rows if frames[row])
    chosen = in_turn([_who(index, row)[0] for row in usable], [frames[row] for row in usable], seconds)
    return [usable[number] for number in chosen]


def speech_set(shards: Path, rows: np.ndarray, seconds: float, phones: Sequence[str], seed: int = 0) -> ProbeSet:
    """Rows without phones, to fit codebooks on: drawn by the hash of their audio until there are enough seconds.

    Args:
        seconds: Audio at most, at least one row.
        phones: Inventory of the held-out set.

    Raises:
        ValueError: If there is no row with a frame, or too many cannot be read.
    """
    index = Index.open(shards)
    rows = rows[num_frames(np.asarray(index.num_samples[rows], dtype=np.int64)) > 0]
    # Enough of the rows for the draw; hashing each of 23 million takes a minute.
    step = max(1, len(rows) // 200_000)
    order = sorted(rows[::step].tolist(), key=lambda row: stable_hash(f"{seed}/{int(index.pcm[row])}"))
    total = np.cumsum([num_frames(int(index.num_samples[row])) for row in order]) / FRAME_RATE_HZ
    chosen = order[: max(1, int(np.searchsorted(total, seconds, side="right")))]
    if not chosen:
        raise ValueError(f"codebooks need speech, but {shards} has no row of other speakers left: set fit=DIR or held_out")
    reader = ShardReader(index)
    return ProbeSet(tuple(_utterance(reader, row, (), phones) for row in chosen), tuple(phones)).readable()


def _who(index: Index, row: int) -> tuple[str, str]:
    """Speaker and name of a row; without a speaker each recording is its own, without a recording each row."""
    recording = index.recordings[int(index.recording[row])].split("/", 1)[-1]
    name = recording or index.keys[row]
    return index.speakers[int(index.speaker[row])] or name, name
