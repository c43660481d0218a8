"""On the demo's own second training no health rule fires; each planted fault fires its own rule and no other (after `make demo`)."""

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import yaml

from planted_faults import (
    blocked_layer,
    dead_channels,
    growing_gradient,
    hidden_and_seen_exchanged,
    infinite_gradients,
    labels_of_noise,
    labels_of_one_byte_lost,
    nothing,
    slow_loader,
    slower_updates,
    unreadable_rows,
)
from runs import launch

ROOT = Path(__file__).parents[2]
STAGES = ROOT / "runs" / "demo" / "stages"
TRAININGS = sorted(STAGES.glob("?/train-*/run"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(len(TRAININGS) != 2, reason=f"needs the trainings of a finished demo in {STAGES}: run make demo"),
]

ONE_WINDOW = ["stop_after=100"]
EIGHT_WINDOWS = ["stop_after=800"]
# Nothing is loosened: what is overridden is when the training stops, how often it measures, and what the fault itself needs.
FAULTS: dict[str, tuple[Callable[[], None], list[str]]] = {
    "unigram": (partial(labels_of_noise, 100), []),
    "count_table": (nothing, ["optim.lr=5e-5"]),  # a slip of the pen in the learning rate
    "unmasked_accuracy": (hidden_and_seen_exchanged, [*ONE_WINDOW, "callbacks.unmasked_every=1"]),
    "perplexity": (partial(labels_of_one_byte_lost, 9), []),
    "gradient_flow": (blocked_layer, ONE_WINDOW),
    "gradient_growth": (partial(growing_gradient, 600), EIGHT_WINDOWS),
    "dead_channels": (dead_channels, ONE_WINDOW),
    "skipped_updates": (infinite_gradients, ONE_WINDOW),
    "data_wait": (partial(slow_loader, 0.1), ["stop_after=200", "loader.workers=1"]),
    "throughput": (partial(slower_updates, 600), EIGHT_WINDOWS),
    "unreadable_rows": (unreadable_rows, [*ONE_WINDOW, "data.max_skip_rate=0.5"]),
}


def of_the_demo() -> list[str]:
    """Overrides of the demo's second training, on one process and as long as the rules on the count table need."""
    demo = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text())
    trained = yaml.safe_load((TRAININGS[1] / "config.yaml").read_text())
    source, dev = trained["data"]["sources"]["speech"], trained["data"]["validation"]["dev"]
    return [
        "name=demo",
        *demo["overrides"],
        "optim.updates=2000",
        "data.validation_share=0",
        f"data.sources.speech.shards={source['shards']}",
        f"data.sources.speech.labels={source['labels']}",
        f"+data.validation.dev={{shards: {dev['shards']}, labels: {dev['labels']}}}",
        "trainer.devices=1",
    ]


def fired(directory: Path) -> set[str]:
    return {row["rule"] for row in csv.DictReader((directory / "health.csv").read_text().splitlines())}


@pytest.mark.parametrize("directory", TRAININGS, ids=lambda directory: directory.parent.parent.name)
def test_the_demo_as_it_is_fires_nothing(directory):
    assert fired(directory) == set()


@pytest.mark.parametrize("rule", FAULTS)
def test_a_planted_fault_fires_its_own_rule_and_no_other(tmp_path, rule):
    patch, overrides = FAULTS[rule]
    assert launch([*of_the_demo(), *overrides], tmp_path, patch=patch, patience=900) == [0]
    assert fired(tmp_path) == {rule}
