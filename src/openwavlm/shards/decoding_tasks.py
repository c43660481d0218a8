"""Decodes the utterances of a task, each file once, and records bad, clipped and out-of-phase files."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
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


@dataclass
class TaskDecoder:
    """Decodes items of a task, with paths relative to `root`; `channels` and `max_hours` are those of `make_shards`.

    Attributes:
        skipped: Unusable utterances: `name`, `path`, `reason`, `detail`, `stamp`.
        clipped: Number of clipped samples by file, of files that have any.
        out_of_phase: Files with channels that cancel each other, of which one channel was taken.
        seconds: Durations by file, of files of which segments were used.
    """

    root: Path
    channels: str
    max_hours: float
    skipped: list[dict[str, Any]] = field(default_factory=list)
    clipped: dict[str, int] = field(default_factory=dict)
    out_of_phase: set[str] = field(default_factory=set)
    seconds: dict[str, float] = field(default_factory=dict)

    def decode_items(self, items: Sequence[Item]) -> Iterator[list[Clip]]:
        """Yields the usable utterances of each item, with the channel that was taken, and their clips; skips items without any."""
        by_channel: dict[tuple[str, int | None], list[Utterance]] = defaultdict(list)
        for item in items:
            for utterance in item:
                by_channel[utterance.path, utterance.channel].append(utterance)
        clips: dict[str, Clip] = {}
        for utterances in by_channel.values():
            clips |= {clip[0].name: clip for clip in self._decode_file(utterances)}
        for item in items:
            if good := [clips[utterance.name] for utterance in item if utterance.name in clips]:
                yield good

    def _decode_file(self, utterances: list[Utterance]) -> Iterator[Clip]:
        """Yields the clips of utterances of one channel of one file."""
        name, start_s = utterances[0].path, min(utterance.start_s for utterance in utterances)
        try:
            audio = self._decode(utterances, start_s)
        except AudioError as error:
            length_s = error.recording_s
            # A segment beyond the end does not cost the other segments of its file.
            inside = [u for u in utterances if length_s is not None and u.start_s < length_s and (u.end_s or 0.0) <= length_s]
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
        path = self.root / name
        known = [utterance.end_s for utterance in utterances if utterance.end_s is not None]
        end_s = max(known) if len(known) == len(utterances) else None
        wanted = 0 if channel is None and self.channels == "first" else channel
        audio = decode_or_stop(path, start_s=start_s, end_s=end_s, max_hours=self.max_hours, channel=wanted)
        if channel is None and self.channels == "split" and (number := probe_channels(path)) != 1:
            raise AudioError(
                "no-such-channel", f"planned as one channel, but the file has {number or 'an unknown number of them'}"
            )
        if (known or start_s) and (length_s := probe_seconds(path)) is not None:
            self.seconds[name] = round(length_s, 3)
        return audio

    def _skip(self, utterance: Utterance, error: AudioError) -> None:
        stamp = file_stamp(self.root / utterance.path)
        entry = {"name": utterance.name, "path": utterance.path, "reason": error.reason, "detail": error.detail}
        self.skipped.append(entry | {"stamp": stamp})


def file_stamp(path: Path) -> list[int] | None:
    """Size and modification time, which identify a repaired file; None if there is no file."""
    try:
        status = path.stat()
    except OSError as error:
        check_of_the_file(error, path)
        return None
    return [status.st_size, status.st_mtime_ns]


def _cut(samples: np.ndarray, utterance: Utterance, start_s: float) -> np.ndarray:
    """Cuts an utterance out of audio that begins at `start_s`."""
    first = round((utterance.start_s - start_s) * SAMPLE_RATE_HZ)
    last = None if utterance.end_s is None else round((utterance.end_s - start_s) * SAMPLE_RATE_HZ)
    if first > len(samples) or (last is not None and last > len(samples) + SAMPLE_RATE_HZ // 2):
        raise _beyond(utterance, start_s + len(samples) / SAMPLE_RATE_HZ)
    return samples[first:last]


def _beyond(utterance: Utterance, length_s: float) -> AudioError:
    end = "the end" if utterance.end_s is None else f"{utterance.end_s:g} s"
    return AudioError("out-of-range", f"segment {utterance.start_s:g} s to {end} of a recording of {length_s:.3f} s")
