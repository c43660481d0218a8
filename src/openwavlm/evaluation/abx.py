"""Features and item files for fastabx (docs/data.md).

fastabx takes the frames from onset to offset, both included, with frame i at 10 + 20 i ms; the centre of the model's frame i is at
12.5 + 20 i ms. Item times are therefore 2.5 ms earlier than in the alignment, ends one more sample: a token then has exactly the frames
with their centre in it, as in `alignments.frame_phones`.
"""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from openwavlm.audio.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, SAMPLE_RATE_HZ, frames_of_seconds, num_samples_of
from openwavlm.evaluation.features import Features, equal_parts
from openwavlm.evaluation.phones.alignments import Segment, is_silence
from openwavlm.evaluation.shard_sets import Judged
from openwavlm.runtime.atomic import atomic_file

HEADER = "#file onset offset #phone prev-phone next-phone speaker"
# Times are whole samples, which have seven decimals: no binary fraction decides about a frame.
_SHIFT = (RECEPTIVE_FIELD_SAMPLES - HOP_SAMPLES) // 2
_LARGEST_GAP = HOP_SAMPLES
_LONGEST = frames_of_seconds(30.0)


class Token(NamedTuple):
    """A line of an item file; times in samples, shifted."""

    onset: int
    offset: int
    phone: str
    before: str
    after: str

    @property
    def frames(self) -> tuple[int, int]:
        """First frame, and one past the last, that fastabx takes."""
        centre = HOP_SAMPLES // 2
        return -((centre - self.onset) // HOP_SAMPLES), (self.offset - centre) // HOP_SAMPLES + 1


def tokens(segments: Sequence[Segment], frames: int, *, triphones: bool) -> Iterator[Token]:
    """Yields the tokens of one recording: phones between two phones that follow each other without a pause.

    Args:
        segments: In order of time.
        frames: Frames of the recording; tokens beyond the last one, and tokens without a frame, are left out.
        triphones: Whether a token reaches over the phones beside it.
    """
    for before, at, after in zip(segments, segments[1:], segments[2:], strict=False):
        if any(is_silence(segment.phone) for segment in (before, at, after)):
            continue
        times = [(_shifted(s.start_s), _shifted(s.end_s)) for s in (before, at, after)]
        if times[1][0] - times[0][1] > _LARGEST_GAP or times[2][0] - times[1][1] > _LARGEST_GAP:
            continue
        onset, offset = (times[0][0], times[2][1]) if triphones else times[1]
        token = Token(max(onset, 0), offset - 1, at.phone, before.phone, after.phone)
        first, end = token.frames
        if 0 <= first < end <= frames:
            yield token


def _shifted(time_s: float) -> int:
    return round(time_s * SAMPLE_RATE_HZ) - _SHIFT


def write_items(judged: Judged, folder: Path) -> dict[str, int]:
    """Writes `triphones.item` and `phones.item`; returns the number of tokens of each."""
    written = {}
    for name in ("triphones", "phones"):
        lines = [HEADER]
        for utterance, key, segments in zip(judged.utterances.utterances, judged.keys, judged.segments, strict=True):
            speaker = "_".join(utterance.speaker.split())
            for token in tokens(segments, utterance.frames, triphones=name == "triphones"):
                phones = " ".join("_".join(phone.split()) for phone in token[2:])
                lines.append(f"{key} {token.onset / SAMPLE_RATE_HZ:.7f} {token.offset / SAMPLE_RATE_HZ:.7f} {phones} {speaker}")
        with atomic_file(folder / f"{name}.item") as file:
            file.write(("\n".join(lines) + "\n").encode())
        written[name] = len(lines) - 1
    return written


def write_features(
    judged: Judged, extract: Features, layers: Sequence[int], folder: Path, name: str = "layer-{:02d}"
) -> list[str]:
    """Writes the features of every judged utterance, extracted alone, those over 30 s in equal parts; returns the folders' names."""
    folders = [name.format(layer) for layer in layers]
    for utterance, key in zip(judged.utterances.utterances, judged.keys, strict=True):
        waveform = utterance.waveform()
        parts = []
        for start, stop in equal_parts(utterance.frames, _LONGEST):
            audio = waveform[start * HOP_SAMPLES : start * HOP_SAMPLES + num_samples_of(stop - start)]
            parts.append([state[0].cpu() for state in extract(audio[None], layers)])
        for of_layer, states in zip(folders, zip(*parts, strict=True), strict=True):
            buffer = io.BytesIO()
            torch.save(torch.cat(states).clone(), buffer)
            with atomic_file(folder / of_layer / f"{key}.pt") as file:
                file.write(buffer.getvalue())
    return folders
