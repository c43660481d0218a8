"""Masked prediction of a trained run on a labelled shard set, beside baselines without audio: unigram, nearest label, count table."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from openwavlm.audio.frames import num_frames
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.plan import EpochPlan, MicroBatchSpec
from openwavlm.batches.settings import Loading, SpanMasking
from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.counts import COUNTED_FRAMES, CountTable, MaskedScore
from openwavlm.evaluation.intervals import ratio_interval
from openwavlm.evaluation.paired import Sums
from openwavlm.evaluation.probe import summary
from openwavlm.labels.quality import repeat_nearest
from openwavlm.model.pretraining import PretrainingOutput, WavLMForPretraining
from openwavlm.training.build import make_builder
from openwavlm.training.config import RunConfig
from openwavlm.training.control import Control
from openwavlm.training.health.references import labels_and_masks
from openwavlm.training.validation import Evaluation, unigram_log_prob

# To be raised when the figures of an unchanged model change: chains then measure again.
VERSION = 2


class _BySpeaker:
    """Sums over masked frames by speaker: nats and right guesses of the model and its baselines, float64 (speakers,) each."""

    def __init__(self, speakers: int) -> None:
        self.frames = np.zeros(speakers)
        self.sums: dict[tuple[str, str], np.ndarray] = {}

    def add(self, name: str, speaker: np.ndarray, **figures: np.ndarray) -> None:
        """Adds `cross_entropy` (nats) or `accuracy` (right or not), (frames,) each, of the frames of `speaker`."""
        for figure, values in figures.items():
            added = np.bincount(speaker, weights=values, minlength=len(self.frames))
            self.sums[name, figure] = self.sums.get((name, figure), 0.0) + added

    def differences(self) -> dict[str, dict[str, list[float | None]]]:
        """Baseline → figure → difference of the model to it: value, lower and upper end, smallest visible difference."""
        found: dict[str, dict[str, list[float | None]]] = {}
        for (name, figure), sums in self.sums.items():
            if name != "model" and self.frames.any():
                apart = ratio_interval(self.sums["model", figure] - sums, self.frames)
                found.setdefault(name, {})[figure] = summary(apart.as_list())
        return found

    def as_json(self, names: Sequence[str]) -> dict[str, Any]:
        """Sums of the speakers with masked frames: `speakers`, `frames`, and figure → model or baseline → sums."""
        present = np.flatnonzero(self.frames)
        figures: dict[str, Any] = {"cross_entropy": {}, "accuracy": {}}
        for (name, figure), sums in self.sums.items():
            figures[figure][name] = sums[present]
        return summary({"speakers": [names[place] for place in present.tolist()], "frames": self.frames[present], **figures})


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
        `cross_entropy`, `accuracy`, `frames` of the model; the same of `unigram`, `nearest_label` and `count_table`; `set`: `test`;
        `differences`: baseline → figure → [model minus baseline, lower end, upper end, smallest visible difference], paired by speaker;
        `by_speaker`: the sums.
        And the model's cross-entropy by speaker, in nats over masked frames.
    """
    seed, masking = opened.data.split_seed, config.masking
    index, counts = opened.indexes[test], [opened.label_counts(number) for number in range(len(opened.classes))]
    by_speaker, log_prob, commonest = _BySpeaker(len(index.speakers)), unigram_log_prob(counts[0]), int(counts[0].argmax())

    def add(batch: PretrainBatch, output: PretrainingOutput) -> None:
        assert output.frame_cross_entropies is not None and output.frame_correct is not None
        hidden = batch.masked_index.numpy()
        speaker = index.speaker[batch.rows.numpy()[hidden // batch.mask.shape[1]]]
        truth, nearest = (
            labels.numpy().reshape(-1)[hidden] for labels in (batch.labels[0], repeat_nearest(batch.labels[0], batch.mask))
        )
        by_speaker.frames += np.bincount(speaker, minlength=len(index.speakers))
        losses = output.frame_cross_entropies.double().numpy()
        by_speaker.add("model", speaker, cross_entropy=losses, accuracy=output.frame_correct.numpy())
        by_speaker.add("unigram", speaker, cross_entropy=-log_prob[truth], accuracy=truth == commonest)
        by_speaker.add("nearest_label", speaker, accuracy=nearest == truth)

    evaluation = Evaluation(
        whole_set(opened, test, seed), make_builder(config, opened, training=False), Loading(workers=0), counts, Control()
    )
    found = evaluation.run(model, torch.device("cpu"), add)
    figures: dict[str, Any] = {
        "cross_entropy": found["cross_entropy"],
        "accuracy": found["accuracy"],
        "frames": found["masked_frames"],
        "set": test,
        "unigram": {"cross_entropy": found["unigram_cross_entropy"], "accuracy": found["unigram_accuracy"]},
        "nearest_label": {"accuracy": found["repeat_nearest_accuracy"]},
    }
    if counted:
        nats, correct, speaker = _counted(opened, masking, seed, train=train, dev=dev, test=test)
        figures["count_table"] = MaskedScore.of(nats, correct)._asdict()
        # Where rows could not be read, the model has fewer frames, and the two are not compared in pairs.
        if np.array_equal(np.bincount(speaker, minlength=len(index.speakers)), by_speaker.frames):
            by_speaker.add("count_table", speaker, cross_entropy=nats, accuracy=correct)
    figures |= {"differences": by_speaker.differences(), "by_speaker": by_speaker.as_json(index.speakers)}
    present = np.flatnonzero(by_speaker.frames)
    sums = by_speaker.sums.get(("model", "cross_entropy"), by_speaker.frames)
    return figures, Sums(tuple(index.speakers[place] for place in present.tolist()), sums[present], by_speaker.frames[present])


def _counted(
    opened: OpenData, masking: SpanMasking, seed: int, *, train: str, dev: str, test: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Count table's nats and right guesses, and the speaker, of each masked, labelled frame of `test`; (frames,) each."""
    # The table counts no more of the training labels; all of 10,000 hours would take 21 GiB.
    training = _labels_and_masks(opened, train, masking, seed, COUNTED_FRAMES)
    table = CountTable(opened.num_classes, seed=0).fit(*training, *_labels_and_masks(opened, dev, masking, seed))
    labels, masks = _labels_and_masks(opened, test, masking, seed)
    rows = np.concatenate([spec.rows for spec in whole_set(opened, test, seed)])
    frames = [int((mask & (row >= 0)).sum()) for row, mask in zip(labels, masks, strict=True)]
    return *table.guesses(labels, masks), np.repeat(opened.indexes[test].speaker[rows], frames)
