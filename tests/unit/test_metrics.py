"""A row of `metrics.csv` from an update's sums, figure by figure."""

import math
from dataclasses import replace

import pytest

from openwavlm.training.masked_figures import metrics_row
from openwavlm.training.sums import StepRecord, of_further_sets

COLUMNS = [
    *("step", "loss", "cross_entropy", "accuracy", "unmasked_accuracy", "feature_penalty", "logmel_error", "grad_norm", "lr"),
    *("masked_frames", "mask_coverage", "mixed_rows", "rows", "audio_s", "padding_share", "unreadable_rows", "void"),
]
SUMS = {
    "cross_entropy": 600.0,
    "correct": 50.0,
    "masked": 200.0,
    "penalty": 30.0,
    "unmasked_correct": 33.0,
    "unmasked": 110.0,
    "samples": 48_000.0,
    "padded_samples": 60_000.0,
    "rows": 9.0,
    "unreadable": 1.0,
    "mixtures": 4.0,
    "mask_frames": 200.0,
    "valid_frames": 320.0,
    "logmel_error": 80.0,
}
RECORD = StepRecord(step=7, sums=SUMS, grad_norm=2.5, lr=3e-4, with_unmasked=True)


def test_every_figure_is_its_sum_over_the_frames_it_belongs_to():
    row = metrics_row(RECORD, penalty_weight=10.0)
    assert row == pytest.approx(
        {
            "step": 7,
            "loss": 3.0 + 10 * 0.15,
            "cross_entropy": 3.0,
            "accuracy": 0.25,
            "unmasked_accuracy": 0.3,
            "feature_penalty": 0.15,
            "logmel_error": 0.4,
            "grad_norm": 2.5,
            "lr": 3e-4,
            "masked_frames": 200,
            "mask_coverage": 0.625,
            "mixed_rows": 4,
            "rows": 9,
            "audio_s": 3.0,
            "padding_share": 0.2,
            "unreadable_rows": 1,
            "void": 0,
        }
    )
    assert list(row) == COLUMNS


def test_further_label_sets_have_columns_and_their_part_of_the_loss():
    sums = SUMS | {"cross_entropy_2": 400.0, "correct_2": 80.0, "cross_entropy_3": 100.0, "correct_3": 10.0}
    row = metrics_row(replace(RECORD, sums=sums), 10.0, (0.5, 0.25, 0.25))
    assert row["loss"] == pytest.approx(0.5 * 3 + 0.25 * 2 + 0.25 * 0.5 + 1.5)
    assert [row[name] for name in ("cross_entropy_2", "accuracy_2", "cross_entropy_3", "accuracy_3")] == [2.0, 0.4, 0.5, 0.05]
    assert list(row) == [*COLUMNS, *of_further_sets(("cross_entropy", "accuracy"), 3)]


@pytest.mark.parametrize(("norm", "void"), [(2.5, 0), (math.inf, 1), (math.nan, 1)])
def test_an_update_is_void_where_its_norm_is_not_finite(norm, void):
    assert metrics_row(replace(RECORD, grad_norm=norm), 10.0)["void"] == void


def test_what_was_not_measured_is_left_empty():
    assert metrics_row(replace(RECORD, with_unmasked=False), 10.0)["unmasked_accuracy"] is None
    bare = metrics_row(replace(RECORD, sums=dict.fromkeys(SUMS, 0.0)), 10.0)
    assert bare["unmasked_accuracy"] is bare["logmel_error"] is None and bare["loss"] == 0
