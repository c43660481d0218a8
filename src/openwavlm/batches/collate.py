"""Planned micro-batch to tensors: reads the pieces, makes the random draws, and finds the frames that enter the loss.

All draws are for the *planned* rows, so an unreadable row does not change other rows' crops, masks or mixtures.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from openwavlm.audio.frames import HOP_SAMPLES, num_samples_of
from openwavlm.batches.batch import MixRecord, PretrainBatch
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.mixing import draw_mixing, draw_noise_clips
from openwavlm.batches.plan import MicroBatchSpec
from openwavlm.batches.settings import Mixing, SpanMasking
from openwavlm.labels.store import LabelStore
from openwavlm.runtime.randomness import integers, uniform, words
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio

log = logging.getLogger(__name__)
_LOGGED_PER_WORKER = 10


@dataclass(frozen=True)
class Draws:
    """Settings of the random draws of a micro-batch besides its rows.

    Attributes:
        mixing: Utterance mixing, or None for clean audio (validation).
        layers: Encoder layers, for LayerDrop's draw.
        layer_drop: Probability that a layer is skipped.
        noise_seconds: Longest excerpt of a noise clip.
    """

    seed: int
    masking: SpanMasking
    mixing: Mixing | None
    layers: int
    layer_drop: float = 0.0
    noise_seconds: float = 30.0


@dataclass
class MicroBatchBuilder:
    """A map from `MicroBatchSpec` to `PretrainBatch`; audio is opened lazily in each worker, labels are those that were checked.

    Attributes:
        shards: Source name → shard-set folder.
        labels: Source name → its label sets, opened.
    """

    shards: dict[str, Path]
    labels: Mapping[str, Sequence[LabelStore]]
    draws: Draws
    noise: Path | None = None
    _readers: dict[Path, ShardReader] = field(default_factory=dict, repr=False)
    _logged: int = 0

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": {}, "_logged": 0}

    def __getitem__(self, spec: MicroBatchSpec) -> PretrainBatch:
        waveforms, num_samples, labels = self._read(spec)
        readable = num_samples > 0
        seed, place = self.draws.seed, spec.id.place
        mask = draw_span_mask(self.draws.masking, spec.num_frames, seed, **place)
        valid = (labels[0] >= 0) & readable[:, None]
        mask &= readable[:, None]
        record, noise, noise_num_samples = self._mixtures(spec, readable)
        keep = uniform(words(seed, "layer_drop", self.draws.layers, **place)) >= self.draws.layer_drop
        return PretrainBatch(
            waveforms=torch.from_numpy(waveforms),
            num_samples=torch.from_numpy(num_samples),
            labels=torch.from_numpy(labels),
            mask=torch.from_numpy(mask),
            masked_index=torch.from_numpy(np.flatnonzero(mask & valid)),
            unmasked_index=torch.from_numpy(np.flatnonzero(~mask & valid)),
            layer_keep=torch.from_numpy(keep),
            mix=record,
            noise=torch.from_numpy(noise),
            noise_num_samples=torch.from_numpy(noise_num_samples),
            rows=torch.from_numpy(spec.rows.astype(np.int64)),
            start_frame=torch.from_numpy(spec.start_frame),
            id=spec.id,
            weight=spec.weight,
            num_unreadable=int((~readable).sum()),
            valid_samples=int(num_samples.sum()),
        )

    def _open(self, shards: Path) -> ShardReader:
        if shards not in self._readers:
            self._readers[shards] = ShardReader(Index.open(shards, check=False))
        return self._readers[shards]

    def _read(self, spec: MicroBatchSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        reader, stores = self._open(self.shards[spec.id.source]), self.labels[spec.id.source]
        sizes = num_samples_of(spec.num_frames)
        waveforms = np.zeros((len(spec.rows), int(sizes.max())), dtype=np.int16)
        labels = np.full((len(stores), len(spec.rows), int(spec.num_frames.max())), -1, dtype=np.int32)
        num_samples = np.zeros(len(spec.rows), dtype=np.int64)
        planned = zip(spec.rows.tolist(), spec.start_frame.tolist(), spec.num_frames.tolist(), sizes.tolist(), strict=True)
        for place, (row, start, frames, size) in enumerate(planned):
            try:
                reader.read(row, start * HOP_SAMPLES, size, out=waveforms[place, :size])
                units = [store.read(row, start, frames) for store in stores]
                if any(len(of_set) != frames for of_set in units):
                    raise UnreadableAudio(f"row {row} of {spec.id.source} has no labels: it was unreadable when it was labelled")
            except UnreadableAudio as error:
                self._report(str(error))
                waveforms[place] = 0
                continue
            for number, of_set in enumerate(units):
                labels[number, place, :frames] = of_set
            num_samples[place] = size
        return waveforms, num_samples, labels

    def _mixtures(self, spec: MicroBatchSpec, readable: np.ndarray) -> tuple[MixRecord, np.ndarray, np.ndarray]:
        mixing, clips = self.draws.mixing, self._noise_clips(spec)
        sizes = np.array([len(clip) for clip in clips], dtype=np.int64)
        noise = np.zeros((len(clips), int(sizes.max(initial=0))), dtype=np.int16)
        for place, clip in enumerate(clips):
            noise[place, : len(clip)] = clip
        if mixing is None or mixing.prob == 0:
            return MixRecord.empty(), noise, sizes
        planned, seed = num_samples_of(spec.num_frames), self.draws.seed
        return draw_mixing(mixing, planned, readable, seed, noise_num_samples=sizes, **spec.id.place), noise, sizes

    def _noise_clips(self, spec: MicroBatchSpec) -> list[np.ndarray]:
        clips = []
        for row, start, size in self.noise_excerpts(spec):
            assert self.noise is not None
            try:
                clips.append(self._open(self.noise).read(row, start, size))
            except UnreadableAudio as error:
                self._report(str(error))
                clips.append(np.zeros(0, dtype=np.int16))
        return clips

    def noise_excerpts(self, spec: MicroBatchSpec) -> list[tuple[int, int, int]]:
        """(row of the noise bank, first sample, samples) of the noise that a micro-batch draws; empty without a noise bank.

        A clip longer than `noise_seconds` is cut at a keyed place.
        """
        mixing = self.draws.mixing
        if self.noise is None or mixing is None or mixing.prob == 0 or mixing.noise_prob == 0:
            return []
        place = spec.id.place
        index = self._open(self.noise).index
        chosen = draw_noise_clips(mixing, len(spec.rows), len(index), self.draws.seed, **place)
        longest = int(self.draws.noise_seconds * 16_000)
        offsets = words(self.draws.seed, "mix.clip_start", len(chosen), **place)
        excerpts = []
        for row, raw in zip(chosen.tolist(), offsets, strict=True):
            if row < 0:
                continue
            total = int(index.num_samples[row])
            size = min(total, longest)
            excerpts.append((row, int(integers(raw[None], total - size + 1)[0]), size))
        return excerpts

    def _report(self, message: str) -> None:
        self._logged += 1
        if self._logged <= _LOGGED_PER_WORKER:
            more = " (further ones are only counted)" if self._logged == _LOGGED_PER_WORKER else ""
            log.warning("skipped: %s%s", message, more)
