"""Model and batch builder of a training config."""

from collections.abc import Sequence
from pathlib import Path

from openwavlm.batches.collate import Draws, MicroBatchBuilder
from openwavlm.batches.sources import OpenData
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.training.config import RunConfig


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
