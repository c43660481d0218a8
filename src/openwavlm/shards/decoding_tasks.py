"""Decodes the utterances of a task, each file once, and records which files are bad, clipped or out of phase."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.audio.downmix import Decoded
from openwavlm.audio.errors import AudioError
from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.audio.read import check_clip, decode_or_stop, probe_channels, probe_seconds
from openwavlm.runtime.resources import check_of_the_file
from openwavlm.shards.corpora.utterance import Utterance
from openwavlm.shards.tasks import Item

Clip = tuple[Utterance, np.ndarray]


class TaskDecoder:
    """Decodes items of a task.

    Args:
        root: Folder that the audio paths are relative to.
        channels: What becomes of several channels: `mean`, `first`, or `split` (utterances then name their channels).
        max_hours: Longest recording that is decoded.

    Attributes:
        skipped: What could not be used: `name`, `path`, `reason`, `detail`, `stamp`.
        clipped: Clipped samples by file, of files that have any.
        out_of_phase: Files whose channels cancel each other, so that one of them was taken.
        seconds: Durations, by file, of files of which segments were used.
    """

    def __init__(self, root: Path, channels: str, max_hours: float) -> None:
        self._root, self._channels, self._max_hours = root, channels, max_hours
        self.skipped: list[dict[str, Any]] = []
        self.clipped: dict[str, int] = {}
        self.out_of_phase: set[str] = set()
        self.seconds: dict[str, float] = {}

    def decode_items(self, items: Sequence[Item]) -> Iterator[list[Clip]]:
        """Yields what is good of each item, if anything is: utterances, with the channel that was taken, and their clips."""
        by_channel: dict[tuple[str, int | None], list[Utterance]] = defaultdict(list)
        for item in items:
            for utterance in item:
                by_channel[utterance.path, utterance.channel].append(utterance)
        clips: dict[str, Clip] = {}
        for utterances in by_channel.values():
            clips |= {clip[0].name: clip for clip in self._decode_file(utterances)}
        for item in items:
            good = [clips[utterance.name] for utterance in item if utterance.name in clips]
            if good:
                yield good

    def _decode_file(self, utterances: list[Utterance]) -> Iterator[Clip]:
        """Yields the clips of utterances of one channel of one file."""
        name, start_s = utterances[0].path, min(utterance.start_s for utterance in utterances)
        try:
            audio = self._decode(utterances, start_s)
        except AudioError as error:
            length_s = error.recording_s
            # A segment beyond the end does not take the others of its file with it.
            inside = [u for u in utterances if length_s is not None and _is_within(u, length_s)]
            if len(inside) == len(utterances):
                inside = []
            for utterance in utterances:
                if utterance not in inside:
                    self._skip(utterance, error if length_s is None else _beyond(utterance, length_s))
            if inside:
                yield from self._decode_file(inside)
            return
        if audio.num_clipped:
            self.clipped[name] = self.clipped.get(name, 0) + audio.num_clipped
        if audio.out_of_phase:
            self.out_of_phase.add(name)
        for utterance in utterances:
            try:
                clip = _cut(audio.samples, utterance, start_s)
                check_clip(clip)
            except AudioError as error:
                self._skip(utterance, error)
            else:
                yield replace(utterance, channel=audio.channel), clip

    def _decode(self, utterances: Sequence[Utterance], start_s: float) -> Decoded:
        """Decodes the range that holds all utterances."""
        name, channel = utterances[0].path, utterances[0].channel
        path = self._root / name
        ends = [utterance.end_s for utterance in utterances]
        known = [end for end in ends if end is not None]
        end_s = max(known) if len(known) == len(ends) else None
        wanted = 0 if channel is None and self._channels == "first" else channel
        audio = decode_or_stop(path, start_s=start_s, end_s=end_s, max_hours=self._max_hours, channel=wanted)
        if channel is None and self._channels == "split" and (number := probe_channels(path)) != 1:
            raise AudioError(
                "no-such-channel", f"planned as one channel, but the file has {number or 'an unknown number of them'}"
            )
        if (known or start_s) and (length_s := probe_seconds(path)) is not None:
            self.seconds[name] = round(length_s, 3)
        return audio

    def _skip(self, utterance: Utterance, error: AudioError) -> None:
        stamp = file_stamp(self._root / utterance.path)
        entry = {"name": utterance.name, "path": utterance.path, "reason": error.reason, "detail": error.detail, "stamp": stamp}
        self.skipped.append(entry)


def file_stamp(path: Path) -> list[int] | None:
    """Size and time of change, by which a repaired file is recognised; None if there is no file."""
    try:
        status = path.stat()
    except OSError as error:
        check_of_the_file(error, path)
        return None
    return [status.st_size, status.st_mtime_ns]


def _cut(samples: np.ndarray, utterance: Utterance, start_s: float) -> np.ndarray:
    """Cuts an utterance out of audio that begins at `start_s` and ends with the recording or later than the utterance."""
    first = round((utterance.start_s - start_s) * SAMPLE_RATE_HZ)
    last = None if utterance.end_s is None else round((utterance.end_s - start_s) * SAMPLE_RATE_HZ)
    if first > len(samples) or (last is not None and last > len(samples) + SAMPLE_RATE_HZ // 2):
        raise _beyond(utterance, start_s + len(samples) / SAMPLE_RATE_HZ)
    return samples[first:last]


def _is_within(utterance: Utterance, length_s: float) -> bool:
    return utterance.start_s < length_s and (utterance.end_s or 0.0) <= length_s


def _beyond(utterance: Utterance, length_s: float) -> AudioError:
    end = "the end" if utterance.end_s is None else f"{utterance.end_s:g} s"
    return AudioError("out-of-range", f"segment {utterance.start_s:g} s to {end} of a recording of {length_s:.3f} s")
