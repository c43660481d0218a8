"""Comparisons of `studies/learn.py`: each figure of each arm stands under its own name, and arms of a seed stay together."""

import threading
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import arms as shared
import learn as learning
from learn import Arm, Seed
from openwavlm.evaluation.features import SPECTRA, LogMelFeatures, MfccFeatures
from openwavlm.pipeline.settings import IterationSettings
from openwavlm.pipeline.stages import Chain


def stage(key: str, result: dict[str, Any] | None = None, seconds: float = 0.0) -> Any:
    return SimpleNamespace(
        folder=Path("/runs/x/stages") / key, key=key, result=result or {}, seconds=seconds, made=True, done=True
    )


# Figures that all differ.
BASELINES = {
    **{name: 0.1 + place / 100 for place, name in enumerate(SPECTRA)},
    **{f"{name}_context": 0.2 + place / 100 for place, name in enumerate(SPECTRA)},
    "untrained": 0.25,
    "majority": 0.26,
}


def arm(number: float, *, mixtures: bool = True, counted: bool = True) -> Arm:
    """Figures that all differ: those of phones, mixtures and masked frames, of two speakers."""
    phones = {"chosen": 0.5 + number, "chosen_layer": 3, **BASELINES, "layers": [0.9]}
    clear = {"speakers": ["a", "b"], "correct": [30 + number, 40], "frames": [100, 100]}
    mixed = {"speakers": ["a", "b"], "chosen": [0.3 + number, 0.32]}
    masked = {"speakers": ["a", "b"], "nats": [60 + number, 75], "frames": [20, 30]}
    loud = {"chosen": 0.71, "level": 0.4, "share": 0.25, "layers": [0.7]}
    level = {"chosen": 0.61, "level": 0.3, "share": 0.25, "layers": [0.6]}
    counts = {"count_table": {"cross_entropy": 2.5, "accuracy": 0.1}, "unigram": {"cross_entropy": 3.5, "accuracy": 0.2}}
    return Arm(
        stage("train", seconds=100.0 + number),
        stage("probe", {"phones": phones | {"by_speaker": clear}}, 7.0),
        stage("masked", {"by_speaker": masked, "figures": counts if counted else None}, 11.0),
        stage(
            "mixtures", {"phones": {"chosen": 0.31, "pseudo_values": mixed}, "overlap": loud, "overlap_normalised": level}, 13.0
        )
        if mixtures
        else None,
    )


def test_sums_of_a_figure_are_its_own_stages_by_speaker() -> None:
    of: dict[str, Any] = {name: arm(0).figure(name) for name in ("phones", "overlapped_phones", "masked")}
    assert {name: (of[name].numerator.tolist(), of[name].denominator.tolist()) for name in ("phones", "masked")} == {
        "phones": ([30, 40], [100, 100]),
        "masked": ([60, 75], [20, 30]),
    }
    assert (of["overlapped_phones"].value, of["overlapped_phones"].pseudo_values.tolist()) == (0.31, [0.3, 0.32])
    assert all(figure.speakers == ("a", "b") for figure in of.values())
    assert of["masked"].value == pytest.approx(135 / 50), "nats a frame"


def test_figures_of_one_model_stand_under_their_names() -> None:
    assert learning._arm_figures(arm(0.001), Path("/runs/x")) == {
        "run": "stages/train/run",
        "masked": round(135.001 / 50, 5),
        "count_table": 2.5,
        "unigram": 3.5,
        "phones": {
            "chosen": 0.501,
            "chosen_layer": 3,
            **BASELINES,
        },
        "overlapped_phones": 0.31,
        "overlap": {
            "raw": {"chosen": 0.71, "level": 0.4, "share": 0.25},
            "gain_normalised": {"chosen": 0.61, "level": 0.3, "share": 0.25},
        },
        "train_seconds": 100.001,
        "probe_seconds": 31.0,
    }
    plain = learning._arm_figures(arm(0, mixtures=False, counted=False), Path("/runs/x"))
    assert [plain[name] for name in ("count_table", "unigram", "overlapped_phones", "overlap")] == [None] * 4
    assert plain["probe_seconds"] == 18.0


def test_a_comparison_is_of_less_against_seed_by_seed() -> None:
    arms = {"x": [arm(1), arm(3)], "y": [arm(0), arm(10)], "z": [arm(99), arm(99)]}
    found = learning._compared({"of": "x", "against": "y", "figures": ["phones", "masked"]}, arms)
    assert list(found) == ["phones", "masked"]
    assert found["phones"].differences == pytest.approx((1 / 200, -7 / 200)) and found["phones"].interval.value == pytest.approx(
        -3 / 200
    )
    assert found["masked"].of == pytest.approx((136 / 50, 138 / 50))
    assert found["masked"].against == pytest.approx((135 / 50, 145 / 50))


CONFIG: dict[str, Any] = {
    "iterations": [{"clusters": 5, "updates": 3}, {"clusters": 9, "updates": 4}],
    "variants": {"v": ["a=1"], "w": ["b=2", "c=3"]},
    "comparisons": {
        "one": {"of": "iteration_2", "against": "iteration_1", "figures": ["phones"]},
        "two": {"of": "iteration_1", "against": "v", "figures": ["overlapped_phones", "masked"]},
    },
    "primary": {"comparison": "two", "figure": "masked"},
    "seeds": [4, 6],
    "seed": 1,
    "parallel": 2,
    "probe": {"clusters": 2},
    "mixtures": {"seed": 0, "energy_ratio_db": 0.0},
}


def asked(of: str, against: str, *figures: str) -> dict[str, Any]:
    return CONFIG | {"comparisons": CONFIG["comparisons"] | {"three": {"of": of, "against": against, "figures": list(figures)}}}


def test_comparisons_that_can_be_made_are_allowed() -> None:
    learning._check(CONFIG)
    learning._check(asked("v", "w", "phones", "masked"))
    learning._check(asked("v", "iteration_2", "phones", "overlapped_phones"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (asked("iteration_3", "v", "phones"), r"comparisons\.three names the arm iteration_3"),
        (asked("v", "iteration_3", "phones"), r"comparisons\.three names the arm iteration_3"),
        (asked("v", "w", "phones", "words"), r"comparisons\.three\.figures has words"),
        (asked("iteration_2", "v", "masked"), "iteration_2 has other labels"),
        (asked("v", "iteration_2", "phones", "masked"), "iteration_2 has other labels"),
        (CONFIG | {"iterations": CONFIG["iterations"][:1]}, "names the arm iteration_2, but there are iteration_1, v, w"),
        (CONFIG | {"primary": {"comparison": "one", "figure": "masked"}}, "masked of one, which no comparison has"),
        (CONFIG | {"primary": {"comparison": "four", "figure": "masked"}}, "masked of four, which no comparison has"),
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        learning._check(config)


def test_every_arm_has_a_model_a_seed_on_the_same_first_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: list[tuple[Any, ...]] = []

    class Noting(Seed):
        def __init__(self, *args: Any, **settings: Any) -> None:
            super().__init__(*args, **settings)

        def first_labels(self) -> Any:
            return f"labels of seed {self.config['seed']}"

        def first(self, labels: Any, overrides: list[str], *, mixtures: bool, counted: bool) -> Any:
            asked_for.append((self.config["seed"], labels, tuple(overrides), mixtures, counted))
            return ("first", self.config["seed"], tuple(overrides))

        def second(self, first: Any, *, mixtures: bool) -> Any:
            return ("second", self.config["seed"], first.result(), mixtures)

        def mixture_baselines(self) -> Any:
            return {"mfcc": "of the mixtures"}

    monkeypatch.setattr(learning, "Seed", Noting)
    arms, baselines = learning._all_arms(Chain(Path("nowhere")), CONFIG, {}, Path("times"))
    assert arms == {
        "iteration_1": [("first", seed, ()) for seed in (4, 6)],
        "iteration_2": [("second", seed, ("first", seed, ()), False) for seed in (4, 6)],
        "v": [("first", seed, ("a=1",)) for seed in (4, 6)],
        "w": [("first", seed, ("b=2", "c=3")) for seed in (4, 6)],
    }
    # The labels are one for all seeds; mixtures are measured where a comparison asks for them; the count table with the labels' arm.
    assert set(asked_for) == {
        (seed, "labels of seed 1", overrides, mixtures, counted)
        for seed in (4, 6)
        for overrides, mixtures, counted in (((), True, True), (("a=1",), True, False), (("b=2", "c=3"), False, False))
    }
    assert baselines == {"mfcc": "of the mixtures"}
    without = CONFIG | {"comparisons": {"one": CONFIG["comparisons"]["one"]}, "iterations": CONFIG["iterations"][:1]}
    arms, baselines = learning._all_arms(Chain(Path("nowhere")), without, {}, Path("times"))
    assert set(arms) == {"iteration_1", "v", "w"} and baselines == {}


def test_the_arms_of_a_seed_train_and_are_measured_on_the_parts_that_they_are_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = {f"{name}{kind}": stage(f"shards-{name}{kind}") for name in ("train", "dev", "test") for kind in ("", "_clean")}
    seed = Seed(Chain(tmp_path), CONFIG, shards, tmp_path / "times", seed=6, one=threading.Lock())
    assert seed.config["seed"] == 6 and seed.config["workers"] == 1
    trained: list[tuple[Any, ...]] = []
    labels = {name: stage(f"labels-{name}") for name in ("train", "dev", "test")}

    def train(number: int, settings: IterationSettings, of: dict[str, Any], previous: Any = None) -> Any:
        trained.append((number, settings.overrides, tuple(of.values())))
        return stage(f"trained-{number}")

    monkeypatch.setattr(seed, "_train", train)
    monkeypatch.setattr(seed, "_probe", lambda of: {"probed": of.key})
    monkeypatch.setattr(
        seed, "_masked_speakers", lambda of, test, *, counted: {"masked": of.key, "on": test.key, "counted": counted}
    )
    monkeypatch.setattr(shared, "encoder", lambda of: of.key)
    monkeypatch.setattr(shared, "EncoderFeatures", lambda model: ("encoder", model))
    monkeypatch.setattr(seed, "_clean_sets", lambda: ("train", "dev", "test"))
    monkeypatch.setattr(shared, "probe_mixtures", lambda *of, **settings: {"mixed": [*of, settings]})
    found = seed.first(labels, ["a=1"], mixtures=True, counted=False)
    assert trained == [(1, ("a=1",), tuple(labels.values()))]
    assert found.probe.result == {"probed": "trained-1"}
    assert found.masked.result == {"masked": "trained-1", "on": "labels-test", "counted": False}
    assert found.mixtures is not None
    assert found.mixtures.result == {"mixed": [("encoder", "trained-1"), "train", "dev", "test", CONFIG["mixtures"]]}
    assert seed.first(labels, ["a=1"], mixtures=False, counted=True).mixtures is None
    assert seed.first(labels, ["a=1"], mixtures=False, counted=True).masked.result["counted"] is True
    # The second iteration is labelled by this seed's first model and trained with settings of its own.
    given: list[Any] = []
    monkeypatch.setattr(seed, "_export", lambda of, folder: given.append(of.key) or {})
    monkeypatch.setattr(
        seed, "_codebook", lambda number, settings, previous: given.append((number, settings.clusters, previous)) or "book"
    )
    monkeypatch.setattr(seed, "_labels", lambda number, name, book, settings, previous: stage(f"{number}-{name}-{book}"))
    first: Future[Arm] = Future()
    first.set_result(found)
    second = seed.second(first, mixtures=False)
    assert given[0] == "trained-1" and given[1][:2] == (2, 9)
    assert given[1][2]["train"].key == "trained-1" and given[1][2]["probe"] is found.probe
    assert [of.key for of in trained[-1][2]] == ["2-train-book", "2-dev-book", "2-test-book"] and trained[-1][0] == 2
    assert second.masked.result == {"masked": "trained-2", "on": "2-test-book", "counted": True}


def test_baselines_on_mixtures_are_mfcc_and_log_mel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {f"{name}_clean": stage(f"shards-{name}") for name in ("train", "dev", "test")}
    seed = Seed(Chain(tmp_path), CONFIG, shards, tmp_path / "times", seed=6, one=threading.Lock())
    monkeypatch.setattr(seed, "_clean_sets", lambda: ())
    monkeypatch.setattr(shared, "probe_mixtures", lambda features, **_: {"of": type(features).__name__})
    found = seed.mixture_baselines()
    assert {name: of.result["of"] for name, of in found.items()} == {
        "mfcc": MfccFeatures.__name__,
        "mfcc_norm": MfccFeatures.__name__,
        "logmel_raw": LogMelFeatures.__name__,
        "logmel": LogMelFeatures.__name__,
    }


def test_the_summary_has_every_comparison_and_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {"iteration_1": [arm(1), arm(2)], "iteration_2": [arm(5), arm(7)], "v": [arm(3), arm(3)], "w": [arm(0), arm(0)]}
    baselines = {"mfcc": stage("m", {"phones": {"layers": [0.1, 0.2]}}), "logmel": stage("l", {"phones": {"layers": [0.3, 0.4]}})}
    monkeypatch.setattr(shared, "shard_sets", lambda chain, config: ({}, Path("times")))
    monkeypatch.setattr(learning, "_all_arms", lambda *_: (arms, baselines))
    monkeypatch.setattr(learning, "_arm_figures", lambda of, place: [of.masked.result["by_speaker"]["nats"][0], str(place)])
    pages: list[Any] = []
    monkeypatch.setattr(learning, "page", lambda summary, compared: pages.append((summary, compared)) or "the page")
    summary = learning.learn(CONFIG, tmp_path)
    assert (tmp_path / "evidence.md").read_text() == "the page" and pages[0][0] == summary
    assert summary["seeds"] == [4, 6] and summary["updates"] == [3, 4] and summary["primary"] == CONFIG["primary"]
    assert summary["mixture_baselines"] == {"mfcc": [0.1, 0.2], "logmel": [0.3, 0.4]}
    assert summary["arms"] == {
        name: [[60 + number, str(tmp_path)] for number in numbers]
        for name, numbers in (("iteration_1", (1, 2)), ("iteration_2", (5, 7)), ("v", (3, 3)), ("w", (0, 0)))
    }
    one, two = summary["comparisons"]["one"], summary["comparisons"]["two"]
    assert (one["of"], one["against"], list(one["figures"])) == ("iteration_2", "iteration_1", ["phones"])
    assert (two["of"], two["against"], list(two["figures"])) == ("iteration_1", "v", ["overlapped_phones", "masked"])
    np.testing.assert_allclose(one["figures"]["phones"]["differences"], [4 / 200, 5 / 200], atol=1e-5)
    np.testing.assert_allclose(two["figures"]["masked"]["differences"], [-2 / 50, -1 / 50], atol=1e-5)
    monkeypatch.setattr(shared, "shard_sets", lambda chain, config: ({}, None))
    with pytest.raises(ValueError, match="needs phone times"):
        learning.learn(CONFIG, tmp_path)
