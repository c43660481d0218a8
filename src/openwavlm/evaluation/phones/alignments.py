"""Phones with their times: the table that all alignment files are read into (`alignment_files`), and the phone at each model frame.

A table of one's own is a TSV with a header that names at least `path start end phone` (seconds; other columns are ignored).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from openwavlm.audio.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ


class Segment(NamedTuple):
    """A phone from `start_s` to `end_s`, in seconds from the recording's beginning."""

    start_s: float
    end_s: float
    phone: str


def read_tsv(path: Path | str) -> dict[str, list[Segment]]:
    """Reads a table of phone segments, unquoted.

    Args:
        path: Tab-separated file whose first line has `path`, `start`, `end` and `phone` in any order.

    Returns:
        Segments of each path of the table, in order of time.

    Raises:
        ValueError: If a column is missing, or a line has too few fields, no numbers, or an end before its start.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"an alignment is UTF-8 text, but {path} is not ({error.reason}): convert it first") from error
    header = lines[0].split("\t") if lines else []
    missing = [name for name in ("path", "start", "end", "phone") if name not in header]
    if missing:
        raise ValueError(f"the first line of {path} must name path, start, end and phone, but lacks {', '.join(missing)}")
    places = [header.index(name) for name in ("path", "start", "end", "phone")]
    table: dict[str, list[Segment]] = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        try:
            name, start, end, phone = (fields[place] for place in places)
            segment = Segment(float(start), float(end), phone)
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"line {number} of {path} must be a path, two times in seconds and a phone, but is {line!r}"
            ) from error
        if not 0 <= segment.start_s <= segment.end_s:
            raise ValueError(f"a phone ends after its start, but line {number} of {path} says {start} to {end}")
        table.setdefault(name, []).append(segment)
    return {name: sorted(segments) for name, segments in table.items()}


def without_stress(segments: Iterable[Segment]) -> list[Segment]:
    """Merges ARPAbet's stressed vowels with the unstressed ones (`AH0` → `AH`; fairseq's quality script does so)."""
    return [segment._replace(phone=re.sub(r"(?<=[A-Z]{2})\d$", "", segment.phone)) for segment in segments]


def inventory_of(*tables: Mapping[str, Sequence[Segment]], ignored: Iterable[str] = ("",)) -> tuple[str, ...]:
    """All phones of some alignments in order of their names, without those to be `ignored`."""
    phones = {segment.phone for table in tables for segments in table.values() for segment in segments}
    return tuple(sorted(phones - set(ignored)))


def frame_phones(segments: Sequence[Segment], num_frames: int, inventory: Sequence[str], *, shift_s: float = 0.0) -> np.ndarray:
    """The phone at the centre of each model frame: frame f sees samples [320 f, 320 f + 400), centre 320 f + 200.

    Args:
        segments: In order of time, not overlapping.
        num_frames: Frames of the utterance.
        inventory: Names of the phones.
        shift_s: Move all segments by this much later, to test an alignment.

    Returns:
        int64 (frames,): number in the inventory; −1 between segments, after the last one, and for phones not in the inventory.
    """
    number = {phone: place for place, phone in enumerate(inventory)}
    phones = np.array([number.get(segment.phone, -1) for segment in segments] or [-1], dtype=np.int64)
    # In whole samples: 0.0325 + 0.02 is not 0.0525 in binary.
    bounds_s = np.array([(segment.start_s, segment.end_s) for segment in segments] or [(np.inf, np.inf)]) + shift_s
    starts, ends = np.round(bounds_s.T * SAMPLE_RATE_HZ)
    centre = np.arange(num_frames) * HOP_SAMPLES + RECEPTIVE_FIELD_SAMPLES // 2
    place = np.searchsorted(starts, centre, side="right") - 1
    inside = (place >= 0) & (centre < ends[place])
    return np.where(inside, phones[place], -1)
