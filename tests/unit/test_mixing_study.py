"""Study of mixing: its outcomes are those of its file, and a gain without accuracy is called calibration."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import mixing as study
from mixing import Arm
from mixing_page import FIGURES, reading
from openwavlm.evaluation.intervals import Interval
from openwavlm.evaluation.paired import Difference

CONFIG: dict[str, Any] = yaml.safe_load((Path(study.__file__).with_suffix(".yaml")).read_text())


def found(low: float, high: float) -> Difference:
    value = (low + high) / 2
    return Difference((0.5,), (0.4,), (value,), Interval(value, low, high, 0.0123, 20, 5))


LOWER, EQUAL, HIGHER = (-0.2, -0.1), (-0.1, 0.1), (0.1, 0.2)


@pytest.mark.parametrize(
    ("nats", "accuracy", "words"),
    [
        (LOWER, HIGHER, "A gain: the labels are predicted more accurately too."),
        (LOWER, EQUAL, "Calibration: the accuracy in these frames is equal (a difference from 0.0123 would have been visible)."),
        (LOWER, LOWER, "Calibration: the accuracy in these frames is lower."),
        (EQUAL, HIGHER, "No difference is visible."),
        (HIGHER, EQUAL, "A loss; the accuracy in these frames is equal."),
    ],
)
def test_a_lower_cross_entropy_is_a_gain_only_with_a_higher_accuracy(nats: Any, accuracy: Any, words: str) -> None:
    assert reading({"overlapped_nats": found(*nats), "overlapped_accuracy": found(*accuracy)}) == words


def test_outcomes_arms_and_seeds_are_those_of_the_issue() -> None:
    study._check(CONFIG)
    assert CONFIG["primary"] == {"figure": "overlapped_nats", "comparisons": ["p20", "p80"]}
    assert CONFIG["seeds"] == [0, 1, 2, 3, 4] and CONFIG["iterations"][0]["updates"] == 1500
    assert "model=nano_mel" in CONFIG["overrides"] and CONFIG["mixtures"]["energy_ratio_db"] == 0.0
    assert CONFIG["arms"]["p80"] == ["mixing=speech", "mixing.prob=0.8", "mixing.max_share=1.0"]
    assert {CONFIG["primary"]["figure"], *CONFIG["secondary"]} <= FIGURES.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"comparisons": {"x": {"of": "p30", "against": "p20"}}}, r"comparisons\.x names the arm p30"),
        ({"secondary": ["words", "overlapped_accuracy"]}, "name the figure words"),
        ({"secondary": ["target"]}, "cannot be told from calibration"),
        ({"primary": {"figure": "overlapped_nats", "comparisons": ["p30"]}}, "names the comparison p30"),
    ],
)
def test_a_study_that_cannot_be_read_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        study._check(CONFIG | change)


def arm(number: float) -> Arm:
    """Figures of two speakers that all differ."""
    speakers = {"speakers": ["a", "b"]}
    labels = speakers | {"nats": [20 + number, 30], "correct": [3 + number, 4], "frames": [10, 20]}
    labels |= {"masked_nats": [50 + number, 60], "masked_frames": [25, 25]}
    phones = speakers | {"correct": [7 + number, 8], "frames": [50, 50]}
    precision = {"chosen": 0.6 + number, "by_speaker": speakers | {"pseudo_values": [0.5 + number, None]}}
    results: list[dict[str, Any]] = [
        {},
        {"by_speaker": labels},
        {"clean_phones": {"by_speaker": phones}, "overlap_normalised": precision, "target": precision},
    ]
    return Arm(*(SimpleNamespace(result=result) for result in results))  # type: ignore[arg-type]


def test_each_figure_is_compared_by_its_own_sums() -> None:
    of, against = [arm(0.3), arm(0.1)], [arm(0.0), arm(0.0)]
    for figure, frames in (("overlapped_nats", 30), ("overlapped_accuracy", 30), ("masked_mixed", 50), ("clean_phones", 100)):
        assert study._difference(figure, of, against).differences == pytest.approx((0.3 / frames, 0.1 / frames)), figure
    assert study._difference("overlapped_nats", of, against).against == pytest.approx((50 / 30,) * 2)
    precision = study._difference("target", of, against)
    assert precision.differences == pytest.approx((0.3, 0.1)) and precision.interval.clusters == 1
    assert np.isnan(arm(0).pseudo("target").pseudo_values[1])
