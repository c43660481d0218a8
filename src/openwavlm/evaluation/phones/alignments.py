"""Phones with their times: one inventory for alignments of different origin, and the phone at each model frame."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from openwavlm.audio.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ

FOLDINGS = ("none", "arpabet", "timit39")
SILENCE = "sil"
SILENCES = frozenset(
    {
        *("", "sil", "sp", "spn", "nsn", "ssil", "silence", "pau", "epi", "h#", "#h", "#"),
        *("<eps>", "<sil>", "<sp>", "<silence>", "<p:>", "<pau>", "<spn>", "_"),
    }
)
_POSITION = re.compile(r"_[BEIS]$")
_STRESSED = re.compile(r"([a-z]{2})[012]")
# Lee and Hon (1989), table 1: phones not listed keep their names, the glottal stop is left out.
_CLOSURES = ("pcl", "tcl", "kcl", "bcl", "dcl", "gcl")
_TIMIT = dict.fromkeys(_CLOSURES, SILENCE) | {
    "ao": "aa", "ax": "ah", "ax-h": "ah", "axr": "er", "hv": "hh", "ix": "ih", "ux": "uw", "zh": "sh",
    "el": "l", "em": "m", "en": "n", "nx": "n", "eng": "ng",
}  # fmt: skip
_LEFT_OUT = "q"


class Segment(NamedTuple):
    """A phone from `start_s` to `end_s`, in seconds from the recording's beginning."""

    start_s: float
    end_s: float
    phone: str


def inventory_of(*tables: Mapping[str, Sequence[Segment]], ignored: Iterable[str] = ("",)) -> tuple[str, ...]:
    """Phones of some alignments in order of their names, without the `ignored` ones."""
    phones = {segment.phone for table in tables for segments in table.values() for segment in segments}
    return tuple(sorted(phones - set(ignored)))


def frame_phones(segments: Sequence[Segment], num_frames: int, inventory: Sequence[str], *, shift_s: float = 0.0) -> np.ndarray:
    """Phone at the centre of each model frame: frame f sees samples [320 f, 320 f + 400), centre 320 f + 200.

    Args:
        segments: In order of time, not overlapping.
        shift_s: Delay of all segments, to test an alignment.

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


def folded(segments: Iterable[Segment], folding: str) -> list[Segment]:
    """Renames the phones of an alignment.

    Args:
        segments: With the names of a file.
        folding: `none`; `arpabet`: small letters, without stress digits (`AH0` → `ah`) and Kaldi's positions (`AH_B`), all silences
            and noises one `sil`; `timit39`: the usual 39 classes of TIMIT's 61, where closures are silence and `q` is no phone.

    Raises:
        ValueError: If the folding is unknown.
    """
    if folding not in FOLDINGS:
        raise ValueError(f"folding must be one of {', '.join(FOLDINGS)}, but is {folding!r}")
    if folding == "none":
        return list(segments)
    renamed = [segment._replace(phone=_plain(segment.phone)) for segment in segments]
    if folding == "arpabet":
        return renamed
    return [s._replace(phone=_TIMIT.get(s.phone, s.phone)) for s in renamed if s.phone != _LEFT_OUT]


def _plain(phone: str) -> str:
    phone = _POSITION.sub("", phone.strip()).lower()
    if phone in SILENCES:
        return SILENCE
    stressed = _STRESSED.fullmatch(phone)
    return stressed[1] if stressed else phone


def is_silence(phone: str) -> bool:
    """True for names of silence, noise or nothing, folded or not."""
    return phone.strip().lower() in SILENCES
