"""Model, batch builder and objective of a pre-training's config."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from openwavlm.audio.spectra import NUM_BANDS
from openwavlm.batches.collate import Draws, MicroBatchBuilder
from openwavlm.batches.sources import OpenData
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.training.config import RunConfig
from openwavlm.training.masked_prediction import MaskedPrediction


def make_model(config: RunConfig, num_classes: int | Sequence[int]) -> WavLMForPretraining:
    """Encoder and head, or a head for each label set's number of classes."""
    return WavLMForPretraining(WavLM(config.model), config.head, num_classes)


def make_builder(config: RunConfig, opened: OpenData, *, training: bool) -> MicroBatchBuilder:
    """Builder of micro-batches: with all augmentation for training, with masks alone for validation."""
    data = opened.data
    draws = Draws(
        seed=config.seed if training else data.split_seed,
        masking=config.masking,
        mixing=config.mixing if training else None,
        layers=config.model.layers,
        layer_drop=config.model.layer_drop if training else 0.0,
    )
    return MicroBatchBuilder(
        {name: Path(source["shards"]) for name, source in data.all_sets.items()},
        opened.label_sets,
        draws,
        Path(data.noise) if data.noise and training else None,
    )


def make_objective(config: RunConfig, num_classes: Sequence[int]) -> MaskedPrediction:
    """Masked prediction with the config's losses, for label sets of so many classes; call it after `make_model`, since it draws weights."""
    return MaskedPrediction(
        config.loss,
        config.mixing,
        seed=config.seed,
        updates=config.optim.updates,
        target_weights=config.loss.target_weights(len(num_classes)),
        unmasked_every=config.callbacks.unmasked_every,
        logmel_map=nn.Linear(config.model.conv_dims[-1], NUM_BANDS) if config.loss.logmel else None,
    )
