"""Masked prediction of a trained run on a labelled shard set, beside what needs no audio: unigram, nearest label, count table."""

import math
from typing import Any

import numpy as np
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.batches.plan import EpochPlan, MicroBatchSpec
from openwavlm.batches.settings import Loading, SpanMasking
from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.counts import COUNTED_FRAMES, CountTable
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.training.build import make_builder
from openwavlm.training.config import RunConfig
from openwavlm.training.control import Control
from openwavlm.training.health.references import labels_and_masks
from openwavlm.training.validation import Evaluation, Unigram

Sequences = tuple[list[np.ndarray], list[np.ndarray]]


def _labels_and_masks(
    opened: OpenData, specs: list[MicroBatchSpec], masking: SpanMasking, seed: int, enough: float = math.inf
) -> Sequences:
    """Those of whole micro-batches, up to the one that reaches `enough` frames."""
    labels, masks, frames = [], [], 0
    for spec in specs:
        for row, mask in labels_and_masks(opened, spec, masking, seed):
            labels.append(row)
            masks.append(mask)
            frames += len(row)
        if frames >= enough:
            break
    return labels, masks


def whole_set(opened: OpenData, name: str, seed: int) -> list[MicroBatchSpec]:
    """Micro-batches of one pass over a set."""
    index = opened.indexes[name]
    usable = num_frames(np.asarray(index.num_samples, dtype=np.int64)) > 0
    plan = EpochPlan(index.num_samples, index.first_row, usable, opened.batching, seed=seed, source=name, epoch=0)
    return [plan.spec(number) for number in range(len(plan))]


def masked_figures(
    model: WavLMForPretraining, config: RunConfig, opened: OpenData, *, train: str, dev: str, test: str
) -> dict[str, Any]:
    """Scores a model and its straw men on the same masked frames of `test`.

    The count table is fitted on the labels of `train` under training's masks, its weights on those of `dev`; neither hears audio.

    Args:
        model: Encoder and head.
        config: The run's.
        opened: The run's data, in which `test` and `dev` are validation sets.
        train: Name of the source.
        dev: Name of the set on which the count table's weights are fitted.
        test: Name of the set that is judged.

    Returns:
        `cross_entropy`, `accuracy`, `frames` of the model; the same of `unigram`, `nearest_label` and `count_table`; `set`: `test`.
    """
    seed, masking = opened.data.split_seed, config.masking
    specs = {name: whole_set(opened, name, seed) for name in (train, dev, test)}
    control = Control()
    builder = make_builder(config, opened, training=False)
    evaluation = Evaluation(
        specs[test],
        builder,
        Loading(workers=1),
        [Unigram.of(opened.label_counts(number)) for number in range(len(opened.classes))],
        control,
    )
    figures = evaluation.run(model, torch.device("cpu"))
    sequences = {name: _labels_and_masks(opened, specs[name], masking, seed) for name in (dev, test)}
    # The table counts no more of them; all of 10,000 hours would take 21 GiB.
    sequences[train] = _labels_and_masks(opened, specs[train], masking, seed, COUNTED_FRAMES)
    table = CountTable(opened.num_classes, seed=0).fit(*sequences[train], *sequences[dev])
    score = table.score(*sequences[test])
    return {
        "cross_entropy": figures["cross_entropy"],
        "accuracy": figures["accuracy"],
        "frames": figures["masked_frames"],
        "set": test,
        "unigram": {"cross_entropy": figures["unigram_cross_entropy"], "accuracy": figures["unigram_accuracy"]},
        "nearest_label": {"accuracy": figures["repeat_nearest_accuracy"]},
        "count_table": {"cross_entropy": score.cross_entropy, "accuracy": score.accuracy, "frames": score.frames},
    }
