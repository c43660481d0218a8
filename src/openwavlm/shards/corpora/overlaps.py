"""Audio that a corpus lists more than once or not at all: overlapping segments of a file, and audio outside all segments."""

import heapq
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from openwavlm.shards.corpora.utterance import Utterance

# Smaller differences come from rounded times.
_TOLERANCE_S = 0.001
_ROUNDED_S = 0.5


@dataclass(frozen=True)
class Overlaps:
    """Amount of audio that a corpus lists more than once, or not at all.

    Attributes:
        segments: Number of utterances that share a stretch of their file with one that begins before them.
        of_several_speakers: Number of these that share it with another known speaker.
        seconds: Audio that is listed again.
        outside_seconds: Audio outside all segments of its file, from half a second a file, of files of known duration.
    """

    segments: int = 0
    of_several_speakers: int = 0
    seconds: float = 0.0
    outside_seconds: float = 0.0


def find_overlaps(utterances: Iterable[Utterance], seconds_of_file: Callable[[str], float | None]) -> Overlaps:
    """Measures overlaps of utterances and audio outside all of them; channels of a file are separate.

    `seconds_of_file` returns the duration of a file by its path, None where unknown; it is called only for files in segments.
    """
    by_file: dict[tuple[str, int | None], list[Utterance]] = defaultdict(list)
    for utterance in utterances:
        by_file[os.path.normpath(utterance.path), utterance.channel].append(utterance)
    segments = several = 0
    seconds = outside = 0.0
    for of_file in by_file.values():
        if not (of_file[0].start_s or of_file[0].end_s is not None or len(of_file) > 1):
            continue
        length_s = seconds_of_file(of_file[0].path)
        longest_s = float("inf") if length_s is None else length_s
        ends = [max(u.start_s, longest_s if u.end_s is None else min(u.end_s, longest_s)) for u in of_file]
        found = _sweep(sorted(zip(of_file, ends, strict=True), key=lambda pair: (pair[0].start_s, pair[1])))
        segments, several, seconds = segments + found.segments, several + found.of_several_speakers, seconds + found.seconds
        if length_s is not None:
            listed_s = sum(end_s - utterance.start_s for utterance, end_s in zip(of_file, ends, strict=True)) - found.seconds
            outside += length_s - listed_s if length_s - listed_s >= _ROUNDED_S else 0.0
    return Overlaps(segments, several, seconds, outside)


def _sweep(segments: list[tuple[Utterance, float]]) -> Overlaps:
    """Measures the overlaps of segments of one file, sorted by start."""
    open_ones: list[tuple[float, str]] = []
    covered_s = seconds = 0.0
    count = several = 0
    for utterance, end_s in segments:
        while open_ones and open_ones[0][0] <= utterance.start_s + _TOLERANCE_S:
            heapq.heappop(open_ones)
        if open_ones:
            count += 1
            several += any(speaker and utterance.speaker not in ("", speaker) for _, speaker in open_ones)
            shared_s = min(end_s, covered_s) - utterance.start_s
            seconds += shared_s if shared_s < float("inf") else 0.0
        heapq.heappush(open_ones, (end_s, utterance.speaker))
        covered_s = max(covered_s, end_s)
    return Overlaps(count, several, seconds)
