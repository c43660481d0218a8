"""Features of whole utterances on the model's frame grid, from an encoder or from the waveform alone.

Batches have utterances of exactly equal length: padding would enter the group norm's statistics, cropping would lose frames.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openwavlm.audio.frames import FRAME_RATE_HZ, HOP_SAMPLES, num_samples_of
from openwavlm.audio.mfcc import MFCC_SETTINGS, NUM_FEATURES, mfcc_features
from openwavlm.audio.spectra import LOGMEL_SETTINGS, NUM_BANDS, log_mel, normalised_log_mel
from openwavlm.evaluation.conditions import Change
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM

CONTEXT_FRAMES = 5
# Digital silence has constant MFCC, whose deviation is rounding alone; that of speech is above 0.1 in every dimension.
_LEAST_DEVIATION = 1e-3


class Features(Protocol):
    """Callable from waveforms to layers of frames.

    Attributes:
        dims: Width of each layer.
        settings: All that the values depend on, for JSON; None for trained weights, so that no cache serves them.
        standardise: Whether units are fitted on standardised features.
    """

    dims: tuple[int, ...]
    settings: dict[str, Any] | None
    device: torch.device
    standardise: bool

    def __call__(self, waveforms: np.ndarray, layers: Sequence[int]) -> list[Tensor]:
        """Int16 (batch, samples) → float32 (batch, frames, dim) for each of `layers`."""


def with_context(frames: Tensor, context: int = CONTEXT_FRAMES) -> Tensor:
    """Concatenates each frame with its neighbours, the ends repeated; (batch, frames, dim) → (batch, frames, (2 · context + 1) · dim)."""
    padded = F.pad(frames.transpose(1, 2), (context, context), mode="replicate")
    return padded.unfold(2, 2 * context + 1, 1).permute(0, 2, 3, 1).flatten(2)


class EncoderFeatures:
    """All layers of an encoder, 0 = its input, each after its residual and before the closing norm; in float32."""

    settings: dict[str, Any] | None = None

    def __init__(self, model: WavLM) -> None:
        self.model = model
        self.dims = (model.config.dim,) * (model.config.layers + 1)
        self.device = next(model.parameters()).device
        # A few dimensions dominate the raw streams of pre-norm models.
        self.standardise = model.config.pre_norm

    @classmethod
    def untrained(cls, config: WavLMConfig, seed: int, device: torch.device) -> "EncoderFeatures":
        """A model with fresh random weights; torch's own generator is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = WavLM(config)
        features = cls(model.to(device))
        features.settings = {"name": "untrained", "seed": seed, "config": asdict(config)}
        return features

    def __call__(self, waveforms: np.ndarray, layers: Sequence[int]) -> list[Tensor]:
        """As `Features`."""
        audio = torch.from_numpy(waveforms).to(self.device).float() / 32768
        with torch.autocast(self.device.type, enabled=False):
            return [state.float() for state in self.model.extract(audio, layers=layers)]


class _FrameFeatures:
    """Layer 0: features of one frame; layer 1: the frame and five to each side."""

    def __init__(self, width: int, settings: dict[str, Any]) -> None:
        self.dims: tuple[int, ...] = (width, width * (2 * CONTEXT_FRAMES + 1))
        self.settings: dict[str, Any] | None = {**settings, "context": CONTEXT_FRAMES}
        self.device, self.standardise = torch.device("cpu"), False

    def _frames(self, waveforms: np.ndarray) -> Tensor:
        raise NotImplementedError

    def __call__(self, waveforms: np.ndarray, layers: Sequence[int]) -> list[Tensor]:
        """As `Features`."""
        frames = self._frames(waveforms)
        return [with_context(frames) if layer else frames for layer in layers]


class MfccFeatures(_FrameFeatures):
    """39 MFCC of a frame, and of a frame with its context.

    With `normalised`, each dimension has mean 0 and variance 1 over the utterance (over each 30-s part of a long one).
    """

    def __init__(self, *, normalised: bool = False) -> None:
        of_normalised = {"name": "mfcc_norm", "normalised": "mean and variance of each dimension over the utterance"}
        super().__init__(NUM_FEATURES, MFCC_SETTINGS | (of_normalised if normalised else {}))
        self._normalised = normalised

    def _frames(self, waveforms: np.ndarray) -> Tensor:
        frames = torch.stack([mfcc_features(waveform) for waveform in waveforms])
        if not self._normalised:
            return frames
        deviation = frames.std(dim=1, keepdim=True, unbiased=False).clamp_min(_LEAST_DEVIATION)
        return (frames - frames.mean(dim=1, keepdim=True)) / deviation


class LogMelFeatures(_FrameFeatures):
    """40 log-mels of a frame, and of a frame with its context; normalised over the utterance unless `normalised` is false."""

    def __init__(self, *, normalised: bool = True) -> None:
        super().__init__(NUM_BANDS, LOGMEL_SETTINGS | ({} if normalised else {"name": "logmel_raw", "normalised": "no"}))
        self._normalised = normalised

    def _frames(self, waveforms: np.ndarray) -> Tensor:
        audio = torch.from_numpy(waveforms).float() / 32768
        return normalised_log_mel(audio) if self._normalised else log_mel(audio)


SPECTRA = {
    "mfcc": "MFCC (raw)",
    "mfcc_norm": "MFCC (normalised)",
    "logmel_raw": "log-mel (raw)",
    "logmel": "log-mel (normalised)",
}


def spectral_baselines() -> dict[str, Features]:
    """MFCC and log-mel by the names of their figures (the keys of `SPECTRA`), each raw and normalised over the utterance.

    Normalisation removes the channel: at 10 dB, raw MFCC units have a PNMI of .204, normalised ones .312.
    """
    return {
        "mfcc": MfccFeatures(),
        "mfcc_norm": MfccFeatures(normalised=True),
        "logmel_raw": LogMelFeatures(normalised=False),
        "logmel": LogMelFeatures(),
    }


class Piece(NamedTuple):
    """Frames of one utterance, or of a part of a long one."""

    utterance: int
    features: list[Tensor]  # of each layer, float32 (frames, dim)
    phones: Tensor  # int64 (frames,), on the features' device


def stream(
    extract: Features,
    probe_set: ProbeSet,
    layers: Sequence[int],
    *,
    change: Change | Sequence[Change | None] | None = None,
    batch_seconds: float = 40.0,
    max_seconds: float = 30.0,
) -> Iterator[Piece]:
    """Yields the features of every frame of a set once, shortest utterances first.

    Args:
        change: Change of the audio: of every utterance, or one an utterance.
        batch_seconds: Audio in one batch of utterances of equal length.
        max_seconds: Longer utterances are cut on the frame grid into equal parts.
    """
    longest = max(1, int(min(max_seconds * FRAME_RATE_HZ, probe_set.frames)))
    groups: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for number, utterance in enumerate(probe_set.utterances):
        for start, stop in equal_parts(utterance.frames, longest):
            groups[stop - start].append((number, start))
    for frames, pieces in sorted(groups.items()):
        size = max(1, int(batch_seconds * FRAME_RATE_HZ) // frames)
        for batch in (pieces[first : first + size] for first in range(0, len(pieces), size)):
            waveforms = []
            for number, start in batch:
                audio = probe_set.utterances[number].waveform()
                own = change[number] if isinstance(change, Sequence) else change
                audio = own(audio) if own else audio
                waveforms.append(audio[start * HOP_SAMPLES : start * HOP_SAMPLES + num_samples_of(frames)])
            states = extract(np.stack(waveforms), layers)
            for place, (number, start) in enumerate(batch):
                phones = probe_set.utterances[number].phones[start : start + frames].astype(np.int64)
                yield Piece(number, [state[place] for state in states], torch.from_numpy(phones).to(extract.device))


def equal_parts(frames: int, longest: int) -> Iterator[tuple[int, int]]:
    """First frame, and one past the last, of equal parts of at most `longest` frames."""
    parts = -(-frames // longest)
    return pairwise(frames * part // parts for part in range(parts + 1))


class Thinning:
    """Even choice of `keep` frames, at most `total`, from a stream of `total`."""

    def __init__(self, total: int, keep: int) -> None:
        self.keep = min(keep, total)
        self._total, self._first = total, 0

    def next(self, count: int) -> Tensor:
        """Marks which of the next `count` frames stay; bool (count,)."""
        places = np.arange(self._first, self._first + count + 1, dtype=np.int64) * self.keep // self._total
        self._first += count
        return torch.from_numpy(np.diff(places) > 0)
