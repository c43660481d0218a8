"""Baselines of a run's labels without audio, which the health rules compare the masked loss with."""

import logging
from collections.abc import Iterator

import numpy as np

from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.plan import MicroBatchSpec
from openwavlm.batches.schedule import Schedule
from openwavlm.batches.settings import SpanMasking
from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.counts import CountTable
from openwavlm.labels.quality import perplexity, unigram
from openwavlm.training.health.judgement import References
from openwavlm.training.health.settings import Health

log = logging.getLogger(__name__)
_JUDGED_SHARE = 0.25  # rows for judging the count table, over those for fitting it


def labels_and_masks(
    opened: OpenData, spec: MicroBatchSpec, masking: SpanMasking, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Labels int64 (frames,), −1 without a label, and mask bool (frames,) of each row of a micro-batch, as the loader draws them."""
    name = spec.id.source
    mask = draw_span_mask(masking, spec.num_frames, seed, **spec.id.place)
    planned = zip(spec.rows.tolist(), spec.start_frame.tolist(), spec.num_frames.tolist(), strict=True)
    for place, (row, start, frames) in enumerate(planned):
        labels = opened.label_sets[name][0].read(row, start, frames).astype(np.int64)
        yield labels if len(labels) == frames else np.full(frames, -1), mask[place, :frames]


def label_references(
    opened: OpenData, schedule: Schedule, masking: SpanMasking, seed: int, settings: Health, *, start: int, updates: int
) -> References:
    """Entropy and perplexity of the training labels, and the loss of a count table, if a run of `updates` is long enough for their rules.

    The count table is fitted without audio on the rows of the updates from `start` on (from 0), under their masks, and judged on the rows
    that follow.
    """
    if updates < settings.settled(updates):
        entropy, even = None, None
    else:
        counts = opened.label_counts()
        entropy, even = (unigram(counts)[0], perplexity(counts)) if counts.sum() else (None, None)
    if not settings.count_rows or updates < settings.counted(updates):
        return References(entropy, even)
    wanted = settings.count_rows + max(1, int(_JUDGED_SHARE * settings.count_rows))
    rows: list[tuple[np.ndarray, np.ndarray]] = []
    for step in range(start, updates):
        for spec in schedule.step(step).specs:
            rows += labels_and_masks(opened, spec, masking, seed)
        if len(rows) >= wanted:
            break
    # A run of few rows keeps some for judging.
    border = min(settings.count_rows, round(len(rows) / (1 + _JUDGED_SHARE)))
    labels, masks = [row[0] for row in rows[:wanted]], [row[1] for row in rows[:wanted]]
    try:
        table = CountTable(opened.num_classes, seed=0).fit(labels[:border], masks[:border])
        return References(entropy, even, table.score(labels[border:], masks[border:]).cross_entropy)
    except ValueError as error:
        log.warning("health: no count table, so its rule is not judged: %s", error)
        return References(entropy, even)
