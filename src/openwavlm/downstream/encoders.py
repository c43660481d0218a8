"""The encoder of a fine-tuning: a checkpoint of any dialect, a run of pre-training, or a control without a model."""

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from openwavlm.audio.frames import num_frames
from openwavlm.checkpoints.about import read_about
from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.evaluation.features import Features, LogMelFeatures, MfccFeatures
from openwavlm.labels.teacher import model_hash
from openwavlm.model.config import WavLMConfig
from openwavlm.model.front_ends import ConvExtractor
from openwavlm.model.wavlm import WavLM, WavLMOutput
from openwavlm.runs.export import load_run, trained_on_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpectraConfig:
    """The part of an encoder's config that a control has."""

    dim: int
    layers: int = 0
    layer_drop: float = 0.0
    normalise_waveform: bool = False
    pre_norm: bool = False

    @property
    def conv_dims(self) -> tuple[int, ...]:
        """Width of the features, as of an extractor."""
        return (self.dim,)


class SpectralEncoder(nn.Module):
    """A control in the encoder's place: MFCC or log-mels, normalised over the utterance, of a frame and of five to each side."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self._features: Features = MfccFeatures(normalised=True) if kind == "mfcc" else LogMelFeatures()
        self.config = SpectraConfig(self._features.dims[1])

    def forward(self, waveforms: Tensor, num_samples: Tensor | None = None, **masks: Any) -> WavLMOutput:
        """Maps (batch, samples) to one layer (batch, frames, dim); masks and LayerDrop are without effect."""
        sizes = [waveforms.shape[1]] * len(waveforms) if num_samples is None else num_samples.tolist()
        found = waveforms.new_zeros(len(waveforms), int(num_frames(waveforms.shape[1])), self.config.dim)
        for row, size in enumerate(sizes):
            if num_frames(size):
                audio = (waveforms[row, :size].cpu().numpy() * 32768).round().clip(-32768, 32767).astype(np.int16)
                frames = self._features(audio[None], [1])[0][0]
                found[row, : len(frames)] = frames.to(found)
        padding = None
        if num_samples is not None:
            padding = torch.arange(found.shape[1], device=found.device) >= num_frames(num_samples).unsqueeze(-1)
        return WavLMOutput([found], found, found.transpose(1, 2), padding)

    def compile_layers(self) -> None:
        """There is nothing to compile."""


def open_encoder(config: FinetuneConfig) -> tuple[Any, dict[str, Any]]:
    """The encoder of a first launch, with the run's regularisation, and the entry `init` for `run.json`.

    Raises:
        ValueError: If the checkpoint cannot be read.
    """
    if config.of_spectra:
        return SpectralEncoder(config.init), {"path": config.init, "dialect": "control", "model": config.init, "trained_on": None}
    path = Path(config.init)
    if (path / "config.yaml").is_file() and (path / "run.json").is_file():
        model, dialect = load_run(path, "newest")[0].wavlm, "run of OpenWavLM"
        trained_on: dict[str, Any] | None = trained_on_of(path)
    else:
        loaded, account = load_checkpoint(path)
        model, dialect = loaded, account.dialect
        about = read_about(path if path.is_dir() else path.parent) or {}
        trained_on = about.get("trained_on")
    entry = {
        "path": config.init,
        "dialect": dialect,
        "model": model_hash(model),
        "trained_on": trained_on,
        "config": asdict(model.config),
    }
    encoder = with_regularisation(config, model.config)
    if not config.untrained:
        encoder.load_state_dict(model.state_dict())
    return encoder, entry | ({"untrained": True, "trained_on": None} if config.untrained else {})


def encoder_of(config: FinetuneConfig, entry: dict[str, Any]) -> Any:
    """The encoder of a later launch or an export, with weights that are still to be loaded, from the entry `init` of `run.json`."""
    if config.of_spectra:
        return SpectralEncoder(config.init)
    return with_regularisation(config, config_of(entry))


def config_of(entry: dict[str, Any]) -> WavLMConfig:
    """The architecture in an entry `init`."""
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in entry["config"].items()}
    return WavLMConfig(**values)


def with_regularisation(config: FinetuneConfig, architecture: WavLMConfig) -> WavLM:
    """An encoder with fresh weights, the run's dropout, and an extractor that leaves padding out."""
    trains_extractor = config.trained.extractor and config.trained.encoder == "full"
    values = config.encoder.of_config() | {"feature_grad_mult": 1.0 if trains_extractor else 0.0}
    encoder = WavLM(replace(architecture, **values))
    if isinstance(encoder.extractor, ConvExtractor):
        encoder.extractor.ignores_padding = True
    return encoder
