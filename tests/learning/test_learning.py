"""Learning itself: a minute and a half of training on synthetic voices beats, on voices never heard, what can be known without audio."""

import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from openwavlm.cli import conf_dir
from openwavlm.iterate import iterate

pytestmark = [
    pytest.mark.xdist_group("learning"),
    pytest.mark.skipif(
        importlib.util.find_spec("espeakng_loader") is None, reason="espeak-ng is not installed: pip install 'openwavlm[demo]'"
    ),
]

RECIPE = [
    "experiment=nano",
    "loss=warm",
    "model.layers=2",
    "batch.seconds=8",
    "batch.micro_seconds=8",
    "optim.warmup_updates=40",
    "loader.workers=0",
]


def config(updates: int, *overrides: str) -> dict:
    made = yaml.safe_load((conf_dir() / "iterate.yaml").read_text())
    return made | {
        "name": "learning",
        "workers": 2,
        "synthesis": {"minutes": 15.0, "dev_minutes": 1.0, "test_minutes": 2.0, "clean_minutes": 4.0, "seed": 0},
        "iterations": [{"features": "mfcc", "clusters": 16, "updates": updates}],
        "overrides": [*RECIPE, *overrides],
        "probe": {"train_seconds": 240.0, "clusters": 50, "fold_stress": False},
    }


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("learning")


def test_a_trained_model_beats_its_baselines_on_voices_it_never_heard(directory: Path):
    (figures,) = iterate(config(900), directory)["iterations"]
    masked, phones = figures["masked"], figures["phones"]
    seen = json.dumps({"masked": masked, "phones": {name: phones[name] for name in ("chosen", "mfcc", "untrained")}})
    assert masked["cross_entropy"] < masked["unigram"]["cross_entropy"] - 0.25, seen
    assert masked["cross_entropy"] < masked["count_table"]["cross_entropy"], seen
    assert phones["chosen"] > phones["untrained"] + 0.05, seen
    assert phones["chosen"] > phones["mfcc"], seen


def test_a_model_that_was_hardly_trained_does_not(directory: Path):
    (figures,) = iterate(config(3, "optim.warmup_updates=1"), directory)["iterations"]
    assert figures["masked"]["cross_entropy"] > figures["masked"]["count_table"]["cross_entropy"]
