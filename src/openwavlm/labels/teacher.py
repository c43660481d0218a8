"""Hidden states of a model as features for k-means: HuBERT's later iterations (HuBERT §III-B, WavLM §IV-B, SPEC §4.3).

Utterances are neither padded nor batched: a group norm would see the padding, and the last bits would depend on the batch.
"""

import gc
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.frames import HOP_SAMPLES, frames_of_seconds, num_frames, num_samples_of
from openwavlm.checkpoints.load import files_of, load_checkpoint
from openwavlm.model.wavlm import WavLM

CHUNK_SECONDS = 30
_CHUNK_FRAMES = frames_of_seconds(CHUNK_SECONDS)
# Settings without effect in evaluation mode: models that differ only in them are the same teacher.
_WITHOUT_EFFECT = (
    *("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop", "layer_drop_mode"),
    *("feature_grad_mult", "attention_backend"),
)


@dataclass(frozen=True)
class Teacher:
    """Model that provides features, in evaluation mode, float32, on the CPU; and its `model_hash`."""

    model: WavLM
    hash: str


def model_hash(model: WavLM) -> str:
    """SHA-256 of a model's architecture and tensors, independent of the file format."""
    architecture = {name: value for name, value in asdict(model.config).items() if name not in _WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().float().cpu().numpy(), dtype="<f4")
        digest.update(f"\n{name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def open_teacher(path: Path | str) -> Teacher:
    """Loads a checkpoint of any dialect, ours or published; loads it again only after its files have changed.

    Raises:
        ValueError: See `checkpoints.load.load_checkpoint`.
    """
    path = Path(path).resolve()
    found = [file.stat() if file.is_file() else None for file in files_of(path)]
    return _opened(path, tuple((status.st_size, status.st_mtime_ns) if status else None for status in found))


@lru_cache(maxsize=1)
def _opened(path: Path, _version: tuple[tuple[int, int] | None, ...]) -> Teacher:
    model = load_checkpoint(path).model.requires_grad_(False)
    return Teacher(model, model_hash(model))


def forget_teacher() -> None:
    """Frees the teacher that `open_teacher` keeps, and GPU memory that torch has cached."""
    _opened.cache_clear()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def layer_chunks(model: WavLM, layers: Sequence[int], waveform: np.ndarray) -> Iterator[tuple[int, list[Tensor]]]:
    """Features of one utterance; above 30 s it is cut on the frame grid into equal parts, which are processed independently.

    Args:
        model: Model on any device.
        layers: Numbers of layers; 0 is the encoder's input.
        waveform: int16 (samples,) at 16 kHz.

    Yields:
        First frame of the part, and for each layer its float32 (frames, dim) after the residual; over all parts exactly
        `frames.num_frames(samples)` frames. Nothing for an utterance without a frame.

    Raises:
        ValueError: If the waveform is not one-dimensional int16; if the model has no such layer.
    """
    if waveform.ndim != 1 or waveform.dtype != np.int16:
        raise ValueError(f"a waveform must be int16 (samples,), but is {waveform.dtype} {waveform.shape}: convert it first")
    frames = num_frames(len(waveform))
    parts = -(-frames // _CHUNK_FRAMES)
    device = next(model.parameters()).device
    for start, stop in pairwise([frames * part // parts for part in range(parts + 1)] if parts else []):
        # The last part includes the samples after its last frame, so that an utterance of one part is processed whole.
        end = len(waveform) if stop == frames else start * HOP_SAMPLES + num_samples_of(stop - start)
        audio = torch.from_numpy(waveform[start * HOP_SAMPLES : end]).to(device).float()[None] / 32768
        states = [state[0] for state in model.extract(audio, layers=layers)]
        assert all(len(state) == stop - start for state in states)
        yield start, states
