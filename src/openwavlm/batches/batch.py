"""One micro-batch with everything that was drawn for it, as it goes from a loader worker to the device."""

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from openwavlm.runtime.randomness import stable_hash

_BY_VALUE_BYTES = 1 << 18


class Movable:
    """Base of dataclasses with tensors that move together, between devices and between processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes a tensor costs a shared-memory file and a descriptor, far more than copying a few kilobytes:
        # only the audio travels that way, the rest goes through the pipe by value.
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        for name, value in values.items():
            if isinstance(value, Tensor) and value.device.type == "cpu" and value.nbytes <= _BY_VALUE_BYTES:
                values[name] = value.numpy()
        return self._rebuild, (values,)

    @classmethod
    def _rebuild(cls, values: dict[str, Any]) -> Self:
        return cls(
            **{name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()}
        )

    def _apply(self, function: Any) -> Self:
        moved: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = function(value)
            elif isinstance(value, Movable):
                moved[field.name] = value._apply(function)
        return replace(self, **moved)  # type: ignore[type-var]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Copies every tensor to `device`."""
        return self._apply(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """Page-locks every tensor (called by torch's DataLoader)."""
        return self._apply(lambda tensor: tensor.pin_memory())

    def _update(self, digest: Any) -> None:
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                digest.update(f"{field.name}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.cpu().contiguous().numpy().tobytes())
            elif isinstance(value, Movable):
                value._update(digest)

    def fingerprint(self) -> str:
        """Hash of all tensors: equal exactly when the batches are bit-equal."""
        digest = hashlib.blake2b(digest_size=16)
        self._update(digest)
        return digest.hexdigest()


@dataclass(frozen=True)
class MixRecord(Movable):
    """Mixtures of one micro-batch, one entry per mixture (WavLM §III-B, Algorithm 1)."""

    row: Tensor  # int64 (mixtures,), the primary's row, ascending
    partner: Tensor  # int64 (mixtures,), the secondary: a row of the batch, or `batch + i` for row `i` of the noise
    start: Tensor  # int64 (mixtures,), first overlapped sample in the primary
    partner_start: Tensor  # int64 (mixtures,), first sample taken from the secondary
    length: Tensor  # int64 (mixtures,), overlapped samples
    energy_ratio_db: Tensor  # float32 (mixtures,), primary over scaled secondary, whole-utterance mean energies
    max_length: int  # longest overlap, known on the host so that applying needs no synchronisation

    @classmethod
    def empty(cls) -> "MixRecord":
        """Record of a batch without mixtures."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(none, none, none, none, none, torch.zeros(0), 0)

    def __len__(self) -> int:
        return self.row.shape[0]


@dataclass(frozen=True)
class MicroBatchId:
    """Name of a micro-batch in the plan, the key of all its random draws."""

    source: str  # name of the data source
    epoch: int  # the source's data epoch, from 0
    stream: int  # number of the source's shard stream
    index: int  # position within the stream's epoch

    @property
    def place(self) -> dict[str, int]:
        """The keys `source`, `epoch` and `micro` of `randomness.words`."""
        return {"source": stable_hash(self.source), "epoch": self.epoch, "micro": self.stream << 32 | self.index}


@dataclass(frozen=True)
class PretrainBatch(Movable):
    """One micro-batch of masked-prediction training."""

    waveforms: Tensor  # int16 (batch, samples), zero-padded at the end
    num_samples: Tensor  # int64 (batch,), valid samples; 0 for an unreadable row
    labels: Tensor  # int32 (sets, batch, frames), pseudo-labels of the clean audio in each label set; −1 = none
    mask: Tensor  # bool (batch, frames), True = masked
    masked_index: Tensor  # int64 (masked,), flat positions batch · frames that enter the loss
    unmasked_index: Tensor  # int64 (unmasked,), flat positions of valid frames that are not masked
    layer_keep: Tensor  # bool (layers,), LayerDrop's draw; all True in evaluation
    mix: MixRecord  # the mixtures to apply
    noise: Tensor  # int16 (noises, samples), noise clips that `mix` refers to, zero-padded
    noise_num_samples: Tensor  # int64 (noises,), their valid samples
    rows: Tensor  # int64 (batch,), rows of the source's index
    start_frame: Tensor  # int64 (batch,), first frame of each piece in its utterance
    id: MicroBatchId  # name of the micro-batch in the plan
    weight: float = 1.0  # 1, or 0 for a padding micro-batch that only keeps the collectives aligned
    num_unreadable: int = 0  # number of unreadable rows
    valid_samples: int = 0  # sum of `num_samples`, on the host

    @property
    def num_masked(self) -> int:
        """Frames that enter the loss (0 for a padding micro-batch); known on the host."""
        return self.masked_index.shape[0] if self.weight else 0
