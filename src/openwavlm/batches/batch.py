"""One micro-batch with everything that was drawn for it, as it goes from a loader worker to the device."""

import hashlib
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

_BY_VALUE_BYTES = 1 << 18


def _rebuild(cls: type, values: dict[str, Any]) -> Any:
    return cls(**{name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value for name, value in values.items()})


class _Movable:
    """Base of dataclasses with tensors that move together, between devices and between processes."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Between processes a tensor costs a shared-memory file and a descriptor, far more than copying a few kilobytes:
        # only the audio travels that way, the rest goes through the pipe by value.
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        for name, value in values.items():
            if isinstance(value, Tensor) and value.device.type == "cpu" and value.nbytes <= _BY_VALUE_BYTES:
                values[name] = value.numpy()
        return _rebuild, (type(self), values)

    def _apply(self, function: Any) -> Self:
        moved: dict[str, Any] = {}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                moved[field.name] = function(value)
            elif isinstance(value, _Movable):
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
            elif isinstance(value, _Movable):
                value._update(digest)

    def fingerprint(self) -> str:
        """Hash of all tensors: equal exactly when the batches are bit-equal."""
        digest = hashlib.blake2b(digest_size=16)
        self._update(digest)
        return digest.hexdigest()


@dataclass(frozen=True)
class MixRecord(_Movable):
    """Mixtures of one micro-batch, one entry a mixture (WavLM §III-B, Algorithm 1).

    Attributes:
        row: int64 (mixtures,), the primary's row, ascending.
        partner: int64 (mixtures,), the secondary: a row of the batch, or `batch + i` for row `i` of the noise.
        start: int64 (mixtures,), first overlapped sample in the primary.
        partner_start: int64 (mixtures,), first sample taken from the secondary.
        length: int64 (mixtures,), overlapped samples.
        energy_ratio_db: float32 (mixtures,), primary over scaled secondary, whole-utterance mean energies.
        max_length: Longest overlap, known on the host so that applying needs no synchronisation.
    """

    row: Tensor
    partner: Tensor
    start: Tensor
    partner_start: Tensor
    length: Tensor
    energy_ratio_db: Tensor
    max_length: int

    @classmethod
    def empty(cls) -> "MixRecord":
        """Record of a batch without mixtures."""
        none = torch.zeros(0, dtype=torch.int64)
        return cls(none, none, none, none, none, torch.zeros(0), 0)

    def __len__(self) -> int:
        return self.row.shape[0]


@dataclass(frozen=True)
class MicroBatchId:
    """Name of a micro-batch in the plan, the key of all its random draws.

    Attributes:
        source: Name of the data source.
        epoch: The source's data epoch, from 0.
        stream: Number of the source's shard stream.
        index: Position within the stream's epoch.
    """

    source: str
    epoch: int
    stream: int
    index: int

    @property
    def key(self) -> int:
        """Stream and index as one integer, the `micro` of `randomness.words`."""
        return self.stream << 32 | self.index


@dataclass(frozen=True)
class PretrainBatch(_Movable):
    """One micro-batch of masked-prediction training.

    Attributes:
        waveforms: int16 (batch, samples), zero-padded at the end.
        num_samples: int64 (batch,), valid samples; 0 for an unreadable row.
        labels: int32 (sets, batch, frames), pseudo-labels of the clean audio in each label set; −1 = none.
        mask: bool (batch, frames), True = masked.
        masked_index: int64 (masked,), flat positions batch · frames that enter the loss.
        unmasked_index: int64 (unmasked,), flat positions of valid frames that are not masked.
        layer_keep: bool (layers,), LayerDrop's draw; all True in evaluation.
        mix: The mixtures to apply.
        noise: int16 (noises, samples), noise clips that `mix` refers to, zero-padded.
        noise_num_samples: int64 (noises,), their valid samples.
        rows: int64 (batch,), rows of the source's index.
        start_frame: int64 (batch,), first frame of each piece in its utterance.
        id: Name of the micro-batch in the plan.
        weight: 1, or 0 for a padding micro-batch that only keeps the collectives aligned.
        num_unreadable: Number of unreadable rows.
        valid_samples: Sum of `num_samples`, on the host.
    """

    waveforms: Tensor
    num_samples: Tensor
    labels: Tensor
    mask: Tensor
    masked_index: Tensor
    unmasked_index: Tensor
    layer_keep: Tensor
    mix: MixRecord
    noise: Tensor
    noise_num_samples: Tensor
    rows: Tensor
    start_frame: Tensor
    id: MicroBatchId
    weight: float = 1.0
    num_unreadable: int = 0
    valid_samples: int = 0

    @property
    def num_masked(self) -> int:
        """Frames that enter the loss (0 for a padding micro-batch); known on the host."""
        return self.masked_index.shape[0] if self.weight else 0
