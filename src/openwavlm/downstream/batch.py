"""One micro-batch of a fine-tuning, and its builder in the loader's workers."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.frames import num_frames, num_samples_of
from openwavlm.batches.batch import MicroBatchId, Movable
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.plan import MicroBatchSpec
from openwavlm.batches.settings import SpanMasking
from openwavlm.runtime.randomness import uniform, words
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio

log = logging.getLogger(__name__)
_LOGGED_PER_WORKER = 10


@dataclass(frozen=True)
class TaskBatch(Movable):
    """One micro-batch of whole utterances with their targets."""

    waveforms: Tensor  # int16 (batch, samples), zero-padded at the end
    num_samples: Tensor  # int64 (batch,), valid samples; 0 for an unreadable row
    targets: Tensor  # int64 (batch, longest), numbers of the vocabulary; −1 = padding
    target_lengths: Tensor  # int64 (batch,); 0 for an unreadable row
    # On the host, since CTC reads both there, and a copy from the device would wait for it.
    frame_counts: tuple[int, ...]  # valid frames of each row; 0 for an unreadable row
    token_counts: tuple[int, ...]  # values of `target_lengths`
    mask: Tensor  # bool (batch, frames), True = masked
    channel_mask: Tensor  # bool (batch, dim), True = channel of the encoder's input that is 0
    layer_keep: Tensor  # bool (layers,), LayerDrop's draw; all True in evaluation
    rows: Tensor  # int64 (batch,), rows of the source's index
    id: MicroBatchId  # name of the micro-batch in the plan
    weight: float = 1.0  # 1, or 0 for a padding micro-batch that only keeps the collectives aligned
    num_unreadable: int = 0  # number of unreadable rows
    valid_samples: int = 0  # sum of `num_samples`, on the host
    num_tokens: int = 0  # sum of `target_lengths`, on the host


@dataclass(frozen=True)
class TaskDraws:
    """Settings of the random draws of a micro-batch.

    Attributes:
        dim: Width of the encoder's input, for channel masks.
        layers: Encoder layers, for LayerDrop's draw.
        layer_drop: Probability that a layer is skipped.
    """

    seed: int
    masking: SpanMasking
    channels: SpanMasking
    dim: int
    layers: int
    layer_drop: float = 0.0


@dataclass
class TaskBuilder:
    """A map from `MicroBatchSpec` to `TaskBatch`; audio is opened lazily in each worker.

    Attributes:
        shards: Source name → shard-set folder.
        targets: Source name → numbers of each row's target; None for a row without.
    """

    shards: Mapping[str, Path]
    targets: Mapping[str, list[list[int] | None]]
    draws: TaskDraws
    _readers: dict[str, ShardReader] = field(default_factory=dict, repr=False)
    _logged: int = 0

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_readers": {}, "_logged": 0}

    def __getitem__(self, spec: MicroBatchSpec) -> TaskBatch:
        draws, place, name = self.draws, spec.id.place, spec.id.source
        sizes = num_samples_of(spec.num_frames)
        waveforms = np.zeros((len(spec.rows), int(sizes.max())), dtype=np.int16)
        num_samples = np.zeros(len(spec.rows), dtype=np.int64)
        for number, (row, size) in enumerate(zip(spec.rows.tolist(), sizes.tolist(), strict=True)):
            try:
                self._open(name).read(row, 0, size, out=waveforms[number, :size])
                num_samples[number] = size
            except UnreadableAudio as error:
                self._report(str(error))
                waveforms[number] = 0
        readable = num_samples > 0
        numbers = [self.targets[name][row] or [] for row in spec.rows.tolist()]
        lengths = np.array([len(one) for one in numbers]) * readable
        targets = np.full((len(numbers), max(1, int(lengths.max(initial=0)))), -1, dtype=np.int64)
        for number, one in enumerate(numbers):
            targets[number, : lengths[number]] = one[: lengths[number]]
        mask = draw_span_mask(draws.masking, spec.num_frames, draws.seed, **place)
        mask &= readable[:, None]
        channels = draw_span_mask(draws.channels, np.full(len(numbers), draws.dim), draws.seed, "channels", **place)
        keep = uniform(words(draws.seed, "layer_drop", draws.layers, **place)) >= draws.layer_drop
        return TaskBatch(
            waveforms=torch.from_numpy(waveforms),
            num_samples=torch.from_numpy(num_samples),
            targets=torch.from_numpy(targets),
            target_lengths=torch.from_numpy(lengths.astype(np.int64)),
            frame_counts=tuple(num_frames(num_samples).tolist()),
            token_counts=tuple(lengths.tolist()),
            mask=torch.from_numpy(mask),
            channel_mask=torch.from_numpy(channels),
            layer_keep=torch.from_numpy(keep),
            rows=torch.from_numpy(spec.rows.astype(np.int64)),
            id=spec.id,
            weight=spec.weight,
            num_unreadable=int((~readable).sum()),
            valid_samples=int(num_samples.sum()),
            num_tokens=int(lengths.sum()),
        )

    def _open(self, name: str) -> ShardReader:
        if name not in self._readers:
            self._readers[name] = ShardReader(Index.open(self.shards[name], check=False))
        return self._readers[name]

    def _report(self, message: str) -> None:
        self._logged += 1
        if self._logged <= _LOGGED_PER_WORKER:
            more = " (further ones are only counted)" if self._logged == _LOGGED_PER_WORKER else ""
            log.warning("skipped: %s%s", message, more)
