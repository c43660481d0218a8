"""Assignment of alignments to rows of an index: by the utterance's name, else by the recording's and the place of the row in it.

A row is one clip, or several short ones joined with silence between. A clip is found by, in this order: the hash of its whole name in
its key; the end of the recording's path; the stem of its key, if no other clip and no other alignment has it. The hash is compared with
that of every ending of the alignment's path, because a shard set can be made from any folder above its files.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np

from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.evaluation.phones.alignments import Segment
from openwavlm.shards.corpora.utterance import utterance_key
from openwavlm.shards.index import Index
from openwavlm.shards.reader import read_fields

_HASH_CHARACTERS = 17  # "-" and 64 bits in hexadecimal end every key


class Clip(NamedTuple):
    """A stretch of a row that one alignment covers: `name` of the alignment, samples of the row, start in the alignment's time."""

    name: str
    offset: int
    num_samples: int
    start_s: float

    def segments(self, segments: Iterable[Segment]) -> list[Segment]:
        """Moves the alignment's segments to the row's time and cuts them at the clip's ends."""
        first_s, end_s = self.offset / SAMPLE_RATE_HZ, (self.offset + self.num_samples) / SAMPLE_RATE_HZ
        moved = [s._replace(start_s=s.start_s - self.start_s + first_s, end_s=s.end_s - self.start_s + first_s) for s in segments]
        cut = [s._replace(start_s=max(s.start_s, first_s), end_s=min(s.end_s, end_s)) for s in moved]
        return [segment for segment in cut if segment.start_s < segment.end_s]


@dataclass(frozen=True)
class Matches:
    """Clips with and without an alignment.

    Attributes:
        clips: Row → its clips with an alignment.
        unknown: Names of clips without an alignment.
        ambiguous: Names of clips that several alignments fit; none is assigned.
        unused: Alignments that no clip has.
    """

    clips: dict[int, list[Clip]]
    unknown: list[str]
    ambiguous: list[str]
    unused: list[str]

    def check(self, max_unmatched_share: float, shards: object) -> None:
        """Refuses a match that leaves out too many clips, so that figures are not of an accidental remainder.

        Raises:
            ValueError: If more than this share of the clips has no alignment, or none has one.
        """
        found = sum(len(clips) for clips in self.clips.values())
        missed = len(self.unknown) + len(self.ambiguous)
        if found and missed <= max_unmatched_share * (found + missed):
            return
        example = (self.ambiguous or self.unknown or [""])[0]
        raise ValueError(
            f"at most a share of {max_unmatched_share:g} of the recordings of {shards} may lack an alignment, but {missed} of "
            f"{found + missed} do ({len(self.ambiguous)} because several fit; for example {example}), while {len(self.unused)} "
            f"alignments belong to none ({', '.join(self.unused[:1]) or 'no example'}): name files as the audio, with enough of the path "
            "to be unique, or raise max_unmatched_share"
        )


class _Names:
    """Alignments by key, stem and ending of the path; None for a name that two share."""

    def __init__(self, names: Iterable[str], sources: Sequence[str]) -> None:
        self.by_key: dict[str, str | None] = {}
        self.by_stem: dict[str, str | None] = {}
        self.by_ending: dict[str, str | None] = {}
        self.all = list(names)
        for name in self.all:
            parts = PurePosixPath(name).parts
            for place in range(len(parts)):
                ending = "/".join(parts[place:])
                _enter(self.by_ending, ending, name)
                for source in sources:
                    _enter(self.by_key, utterance_key(source, ending), name)
            # The stem of every source's keys, without the hash.
            _enter(self.by_stem, utterance_key("", name)[:-_HASH_CHARACTERS], name)
        for name in self.all:
            self.by_ending[name] = name  # a whole path beats the end of a longer one
            for source in sources:
                self.by_key[utterance_key(source, name)] = name


def _enter(table: dict[str, str | None], key: str, name: str) -> None:
    table[key] = None if table.get(key, name) != name else name


class _Clip(NamedTuple):
    key: str
    recording: str
    offset: int
    num_samples: int
    start_s: float | None  # None: not read yet


def match_rows(
    index: Index, names: Iterable[str], rows: Sequence[int] | np.ndarray | None = None, *, joined: bool = True
) -> Matches:
    """Finds the alignment of every row.

    Args:
        names: Names of the alignments: paths without extension, or ids.
        rows: None for all.
        joined: Whether rows of several clips are included.

    Raises:
        ValueError: If a shard differs from the index.
    """
    known = _Names(names, index.sources[1:] or [""])
    joined_rows = set(np.unique(index.members["row"]).tolist())
    numbers = range(len(index)) if rows is None else [int(row) for row in rows]
    candidates = [
        (row, clip)
        for row in numbers
        if joined or row not in joined_rows
        for clip in _clips(index, row, joined=row in joined_rows)
    ]
    stems = Counter(clip.key[:-_HASH_CHARACTERS] for _, clip in candidates)
    found: list[tuple[int, _Clip, str, float | None]] = []
    unknown: list[str] = []
    ambiguous: list[str] = []
    for row, clip in candidates:
        name, by_recording = _find(known, clip, stems)
        if name:
            found.append((row, clip, name, _start_s(index, row, clip) if by_recording else None))
        else:
            (ambiguous if name is None else unknown).append(clip.recording or clip.key)
    # Clips of one recording that begin at the same time are separate files with a common name.
    begins = Counter((name, start_s) for _, _, name, start_s in found)
    clips: dict[int, list[Clip]] = defaultdict(list)
    used = set()
    for row, clip, name, start_s in found:
        if begins[name, start_s] > 1:
            ambiguous.append(clip.recording or clip.key)
            continue
        used.add(name)
        clips[row].append(Clip(name, clip.offset, clip.num_samples, start_s or 0.0))
    return Matches(dict(clips), unknown, ambiguous, [name for name in known.all if name not in used])


def _clips(index: Index, row: int, *, joined: bool) -> list[_Clip]:
    if not joined:
        recording = index.recordings[int(index.recording[row])].split("/", 1)[-1]
        return [_Clip(index.keys[row], recording, 0, int(index.num_samples[row]), None)]
    members = read_fields(index, row)["members"]
    return [_Clip(m["key"], m["recording"], m["offset"], m["num_samples"], float(m["start_s"])) for m in members]


def _find(known: _Names, clip: _Clip, stems: Counter[str]) -> tuple[str | None, bool]:
    """Name of the alignment, "" if there is none, None if several fit; and whether it was found by the recording."""
    stem = clip.key[:-_HASH_CHARACTERS]
    by_key = known.by_key.get(clip.key, "")
    if by_key:
        return by_key, False
    by_recording = known.by_ending.get(clip.recording, "") if clip.recording else ""
    if by_recording:
        return by_recording, True
    by_stem = known.by_stem.get(stem, "")
    if by_stem and stems[stem] == 1:
        return by_stem, False
    return (None, False) if None in (by_key, by_recording, by_stem) or by_stem else ("", False)


def _start_s(index: Index, row: int, clip: _Clip) -> float:
    return float(read_fields(index, row)["start_s"]) if clip.start_s is None else clip.start_s
