"""Masked prediction of a trained run on a labelled shard set, beside baselines without audio: unigram, nearest label, count table."""

import math
from typing import Any

import numpy as np
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.plan import EpochPlan, MicroBatchSpec
from openwavlm.batches.settings import Loading, SpanMasking
from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.counts import COUNTED_FRAMES, CountTable
from openwavlm.evaluation.paired import Sums
from openwavlm.model.pretraining import PretrainingOutput, WavLMForPretraining
from openwavlm.training.build import make_builder
from openwavlm.training.config import RunConfig
from openwavlm.training.control import Control
from openwavlm.training.health.references import labels_and_masks
from openwavlm.training.validation import Evaluation


def _labels_and_masks(
    opened: OpenData, name: str, masking: SpanMasking, seed: int, enough: float = math.inf
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Labels and masks of a set's micro-batches, up to the one that reaches `enough` frames."""
    labels, masks, frames = [], [], 0
    for spec in whole_set(opened, name, seed):
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
    model: WavLMForPretraining, config: RunConfig, opened: OpenData, *, train: str, dev: str, test: str, counted: bool = True
) -> tuple[dict[str, Any], Sums]:
    """Scores a model and its baselines on the same masked frames of `test`.

    The count table is fitted on the labels of `train` under training's masks, its weights on those of `dev`; both without audio.

    Args:
        model: Encoder and head, on the CPU.
        opened: The run's data, with the source `train` and the validation sets `dev` and `test`.
        counted: Whether the count table is fitted.

    Returns:
        `cross_entropy`, `accuracy`, `frames` of the model; the same of `unigram`, `nearest_label` and `count_table`; `set`: `test`.
        And the model's cross-entropy by speaker, in nats over masked frames.
    """
    seed, masking = opened.data.split_seed, config.masking
    index = opened.indexes[test]
    nats, frames = np.zeros(len(index.speakers)), np.zeros(len(index.speakers))

    def add(batch: PretrainBatch, output: PretrainingOutput) -> None:
        assert output.frame_cross_entropies is not None
        speakers = index.speaker[batch.rows.numpy()[batch.masked_index.numpy() // batch.mask.shape[1]]]
        losses = output.frame_cross_entropies.double().numpy()
        nats[:] += np.bincount(speakers, weights=losses, minlength=len(nats))
        frames[:] += np.bincount(speakers, minlength=len(frames))

    counts = [opened.label_counts(number) for number in range(len(opened.classes))]
    evaluation = Evaluation(
        whole_set(opened, test, seed), make_builder(config, opened, training=False), Loading(workers=0), counts, Control()
    )
    found = evaluation.run(model, torch.device("cpu"), add)
    present = np.flatnonzero(frames)
    figures: dict[str, Any] = {
        "cross_entropy": found["cross_entropy"],
        "accuracy": found["accuracy"],
        "frames": found["masked_frames"],
        "set": test,
        "unigram": {"cross_entropy": found["unigram_cross_entropy"], "accuracy": found["unigram_accuracy"]},
        "nearest_label": {"accuracy": found["repeat_nearest_accuracy"]},
    }
    if counted:
        # The table counts no more of the training labels; all of 10,000 hours would take 21 GiB.
        training = _labels_and_masks(opened, train, masking, seed, COUNTED_FRAMES)
        table = CountTable(opened.num_classes, seed=0).fit(*training, *_labels_and_masks(opened, dev, masking, seed))
        figures["count_table"] = table.score(*_labels_and_masks(opened, test, masking, seed))._asdict()
    return figures, Sums(tuple(index.speakers[speaker] for speaker in present.tolist()), nats[present], frames[present])
