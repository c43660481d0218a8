"""Parts of a fine-tuning that its launch, its test and its export share."""

from pathlib import Path

from openwavlm.batches.settings import SpanMasking
from openwavlm.downstream.batch import TaskBuilder, TaskDraws
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.downstream.data import OpenTask
from openwavlm.downstream.model import TaskModel


def make_builder(config: FinetuneConfig, data: OpenTask, model: TaskModel, *, training: bool) -> TaskBuilder:
    """Builder of micro-batches: with masks and LayerDrop for training, without for held-out rows."""
    settings, none = config.encoder, SpanMasking(prob=0.0, min_masks=0)
    masked = training and not model.evaluates
    channels = SpanMasking(prob=settings.channel_prob, length=settings.channel_length, min_masks=0)
    encoder = model.wavlm.config
    draws = TaskDraws(
        seed=config.seed,
        masking=config.masking if masked else none,
        channels=channels if masked else none,
        dim=encoder.dim,
        layers=encoder.layers,
        layer_drop=encoder.layer_drop if masked else 0.0,
    )
    return TaskBuilder({name: Path(values["shards"]) for name, values in data.data.all_sets.items()}, data.numbers, draws)


def symbols_of(data: OpenTask) -> tuple[str, ...]:
    """Output symbols or classes, by number."""
    return data.vocabulary.symbols if data.vocabulary is not None else data.classes
