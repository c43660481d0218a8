"""What a run's labels can be guessed from without audio: on which rows it is fitted, on which it is judged, and under which masks."""

from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from openwavlm.batches.batch import MicroBatchId
from openwavlm.batches.masking import draw_span_mask
from openwavlm.batches.plan import MicroBatchSpec
from openwavlm.batches.settings import SpanMasking
from openwavlm.runtime.randomness import stable_hash
from openwavlm.training.health.references import label_references, labels_and_masks
from openwavlm.training.health.settings import Health

CLASSES, FRAMES, SEED = 4, 30, 11
MASKING = SpanMasking()
SETTINGS = Health(settle_share=0.0, settle_updates=10, count_share=0.0, count_updates=20, count_rows=8)


class Store:
    """Labels that begin with their row's number and carry their frames' numbers; row 5 is shorter than planned."""

    def read(self, row: int, start: int, frames: int) -> np.ndarray:
        labels = ((np.arange(start, start + frames) + row) % CLASSES).astype(np.uint16)
        return labels[:-1] if row == 5 else labels


def spec(step: int, source: str = "speech") -> MicroBatchSpec:
    """Three rows of 30, 30 and 20 frames, from frames 0, 7 and 3."""
    rows = np.arange(3, dtype=np.uint32) + 3 * step
    return MicroBatchSpec(MicroBatchId(source, 2, 1, step), rows, np.array([0, 7, 3]), np.array([FRAMES, FRAMES, 20]))


def opened(counts: np.ndarray | None = None) -> Any:
    label_counts = np.array([8, 4, 2, 2]) if counts is None else counts
    return SimpleNamespace(
        label_sets={"speech": [Store()], "calls": [Store()]}, num_classes=CLASSES, label_counts=lambda: label_counts
    )


class Table:
    """Stands for the count table, and keeps what it is given."""

    fitted: ClassVar[list[list[np.ndarray]]] = []
    judged: ClassVar[list[list[np.ndarray]]] = []

    def __init__(self, num_classes: int, seed: int) -> None:
        assert num_classes == CLASSES

    def fit(self, labels: list[np.ndarray], masks: list[np.ndarray]) -> "Table":
        Table.fitted = [labels, masks]
        return self

    def score(self, labels: list[np.ndarray], masks: list[np.ndarray]) -> SimpleNamespace:
        Table.judged = [labels, masks]
        return SimpleNamespace(cross_entropy=1.25)


def schedule() -> Any:
    return SimpleNamespace(step=lambda step: SimpleNamespace(specs=[spec(step)]))


def test_rows_have_the_labels_of_their_piece_and_the_masks_of_the_training():
    for source in ("speech", "calls"):
        planned = spec(1, source)
        found = list(labels_and_masks(opened(), planned, MASKING, SEED))
        drawn = draw_span_mask(MASKING, planned.num_frames, SEED, source=stable_hash(source), epoch=2, micro=(1 << 32) + 1)
        assert [len(labels) for labels, _ in found] == [len(mask) for _, mask in found] == [30, 30, 20]
        for place, (labels, mask) in enumerate(found):
            start, frames = (0, 7, 3)[place], (30, 30, 20)[place]
            assert np.array_equal(mask, drawn[place, :frames])
            expected = (np.arange(start, start + frames) + 3 + place) % CLASSES
            assert np.array_equal(labels, np.full(frames, -1) if place == 2 else expected), "row 5 could not be read"


def test_labels_of_half_quarter_and_two_eighths_have_the_entropy_and_perplexity_of_these():
    found = label_references(opened(), schedule(), MASKING, SEED, SETTINGS, start=0, updates=19)
    assert found.unigram == pytest.approx(1.75 * np.log(2)) and found.perplexity == pytest.approx(2**1.75)
    assert found.count_table is None
    short = label_references(opened(), schedule(), MASKING, SEED, SETTINGS, start=0, updates=9)
    assert (short.unigram, short.perplexity, short.count_table) == (None, None, None)
    empty = label_references(opened(np.zeros(4)), schedule(), MASKING, SEED, SETTINGS, start=0, updates=19)
    assert empty.unigram is None


def test_the_count_table_is_fitted_on_the_next_rows_and_judged_on_those_that_follow(monkeypatch):
    monkeypatch.setattr("openwavlm.training.health.references.CountTable", Table)
    found = label_references(opened(), schedule(), MASKING, SEED, SETTINGS, start=4, updates=20)
    assert found.count_table == 1.25
    # Eight rows and a quarter more, from the fifth update on: rows 12 … 19, then 20 and 21.
    expected = [row for step in range(4, 8) for row in labels_and_masks(opened(), spec(step), MASKING, SEED)]
    for part, first, last in ((Table.fitted, 0, 8), (Table.judged, 8, 10)):
        assert len(part[0]) == len(part[1]) == last - first
        for labels, mask, row in zip(*part, expected[first:last], strict=True):
            assert np.array_equal(labels, row[0]) and np.array_equal(mask, row[1])


def test_a_run_of_few_rows_keeps_a_fifth_of_them_to_judge_on(monkeypatch):
    monkeypatch.setattr("openwavlm.training.health.references.CountTable", Table)
    label_references(opened(), schedule(), MASKING, SEED, Health(**vars(SETTINGS) | {"count_rows": 500}), start=15, updates=20)
    assert (len(Table.fitted[0]), len(Table.judged[0])) == (12, 3)
    none = Health(**vars(SETTINGS) | {"count_rows": 0})
    assert label_references(opened(), schedule(), MASKING, SEED, none, start=0, updates=20).count_table is None
