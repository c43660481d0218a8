"""Study of mixing: its outcomes are those of its file, and a gain without accuracy is called calibration."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

import arms
import mixing as study
import mixing_page
from arms import compared
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
    """Figures of two speakers that all differ, each with the same pseudo-values."""

    def of(*titles: str) -> dict[str, Any]:
        values = {title: (place + 1) + number for place, title in enumerate(titles)}
        return values | {
            "pseudo_values": {"speakers": ["a", "b"], **{title: [value + 0.5, None] for title, value in values.items()}}
        }

    phones = {"speakers": ["a", "b"], "correct": [7 + number, 8], "frames": [50, 50]}
    results: list[dict[str, Any]] = [
        {},
        {"overlapped": of("cross_entropy", "accuracy"), "masked": of("x", "y", "cross_entropy")},
        {"clean_phones": {"by_speaker": phones}}
        | {name: of(*"abcdefgh"[:place], "chosen") for place, name in enumerate(("overlap_normalised", "target", "phones"), 3)},
    ]
    return Arm(*(SimpleNamespace(result=result) for result in results))  # type: ignore[arg-type]


def test_each_figure_is_compared_by_its_own_values() -> None:
    of, against = [arm(0.3), arm(0.1)], [arm(0.0), arm(0.0)]
    places = ("overlapped_nats", "overlapped_accuracy", "masked_mixed", "overlap_normalised", "target", "overlapped_phones")
    for place, figure in enumerate(places, 1):
        found = compared([one.figure(figure) for one in of], [one.figure(figure) for one in against])
        assert found.against == (place, place) and found.differences == pytest.approx((0.3, 0.1)), figure
        assert found.interval.clusters == 1, "null is no cluster"
    found = compared([one.figure("clean_phones") for one in of], [one.figure("clean_phones") for one in against])
    assert found.differences == pytest.approx((0.3 / 100, 0.1 / 100)) and found.interval.clusters == 2


def test_a_run_with_other_settings_does_not_replace_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    assert arms.changed_settings(["--config-dir=x", "name=y", "parallel=1", "seeds=[0]"]) == ["seeds=[0]"]
    given: list[dict[str, Any]] = []
    config = {"name": "n", "page": "docs/studies/mixing.md"}
    monkeypatch.setattr(arms, "command", lambda name: lambda main: lambda: main(config))
    monkeypatch.setattr(arms, "plain", lambda values: dict(values))
    monkeypatch.setattr(arms, "run_folder", lambda name: tmp_path)
    monkeypatch.setattr(arms.log, "warning", lambda *words: given.append({"warning": words}))
    for words, page in (["name=other"], "docs/studies/mixing.md"), (["seeds=[0]", "name=n"], None):
        monkeypatch.setattr(arms.sys, "argv", ["studies/mixing.py", *words])
        arms.run_study("mixing", lambda values, directory: given.append(values) or {}, lambda summary: None)
        assert given[-1]["page"] == page and given[-1]["changed"] == [word for word in words if word.startswith("seeds")]
    assert "seeds=[0]" in given[-2]["warning"], "the warning names what differs"
    assert "other settings" in mixing_page._origin(["seeds=[0]"]) and "seeds=[0]" in mixing_page._origin(["seeds=[0]"])
    assert "before the first run" in mixing_page._origin([])
