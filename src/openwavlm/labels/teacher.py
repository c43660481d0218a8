"""Hidden states of a model as features to be clustered: HuBERT's later iterations (HuBERT §III-B, WavLM §IV-B, SPEC §4.3).

An utterance is never padded or batched: a group norm would see the padding, and a batch would let neighbours decide the last bits.
What is longer than 30 s is cut on the frame grid into equal parts that know nothing of each other.
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
# What evaluation does not read: two directories that differ in nothing else hold the same teacher.
_WITHOUT_EFFECT = frozenset(
    {
        *("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop", "layer_drop_mode"),
        *("feature_grad_mult", "attention_backend"),
    }
)


@dataclass(frozen=True)
class Teacher:
    """A model whose hidden states are clustered.

    Attributes:
        model: In evaluation mode, float32, on the CPU.
        hash: `model_hash` of it.
    """

    model: WavLM
    hash: str


def model_hash(model: WavLM) -> str:
    """SHA-256 of all that a model's features depend on: its architecture and its tensors, whatever file they came from."""
    architecture = {name: value for name, value in asdict(model.config).items() if name not in _WITHOUT_EFFECT}
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        array = np.ascontiguousarray(tensor.detach().float().cpu().numpy(), dtype="<f4")
        digest.update(f"\n{name} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()


def open_teacher(path: Path | str) -> Teacher:
    """Loads a checkpoint of any dialect, ours or published; once a process as long as its files stay the same.

    Raises:
        ValueError: As `checkpoints.load.load_checkpoint` does.
    """
    path = Path(path).resolve()
    found = [file.stat() if file.is_file() else None for file in files_of(path)]
    return _opened(path, tuple((status.st_size, status.st_mtime_ns) if status else None for status in found))


@lru_cache(maxsize=1)
def _opened(path: Path, _version: tuple[tuple[int, int] | None, ...]) -> Teacher:
    model = load_checkpoint(path).model.requires_grad_(False)
    return Teacher(model, model_hash(model))


def forget_teacher() -> None:
    """Frees the memory of the teacher that `open_teacher` keeps, and what torch holds of a GPU beyond what is in use."""
    _opened.cache_clear()
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def layer_chunks(model: WavLM, layers: Sequence[int], waveform: np.ndarray) -> Iterator[tuple[int, list[Tensor]]]:
    """Features of one utterance, part by part: in one part up to 30 s, in independent parts of equal length beyond.

    Args:
        model: The model.
        layers: Which layers; 0 is the encoder's input.
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
        # The last part also gets the samples after its last frame: an utterance of one part is heard whole.
        end = len(waveform) if stop == frames else start * HOP_SAMPLES + num_samples_of(stop - start)
        audio = torch.from_numpy(waveform[start * HOP_SAMPLES : end]).to(device).float()[None] / 32768
        states = [state[0] for state in model.extract(audio, layers=layers)]
        assert all(len(state) == stop - start for state in states)
        yield start, states


def features_of_layers(model: WavLM, layers: Sequence[int], waveform: np.ndarray) -> list[Tensor]:
    """Features of several layers of one utterance, float32 (frames, dim) each, on the CPU; as `layer_chunks`."""
    parts = [states for _, states in layer_chunks(model, layers, waveform)]
    if not parts:
        return [torch.zeros(0, model.config.dim) for _ in layers]
    return [torch.cat(of_layer).cpu() for of_layer in zip(*parts, strict=True)]
