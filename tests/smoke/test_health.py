"""A sound run fires no health rule; each planted fault fires its own rule and no other; watching changes no figure."""

import csv
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from planted_faults import (
    blocked_layer,
    collapsed_embeddings,
    dead_channels,
    growing_gradient,
    infinite_gradients,
    labels_shuffled,
    nothing,
    slow_loader,
    slower_updates,
    steady_clock,
    unreadable_rows,
    wrong_initialisation,
)
from runs import TINY_MODEL, launch
from synthetic import make_shard_set

SETTINGS = [
    "experiment=wavlm_nano",
    "name=test",
    *TINY_MODEL,
    "masking.prob=0.2",  # easy: labels of short gaps
    "masking.length=2",
    "mixing.prob=0.4",
    "mixing.noise_prob=0.3",
    "batch.seconds=12",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.lr=5e-3",
    "optim.updates=60",
    "optim.warmup_updates=0",
    "optim.final_share=1.0",
    "loss.feature_penalty=0",
    "callbacks.checkpoint_every=100",
    "callbacks.validate_every=0",
    "callbacks.unmasked_every=2",
    "data.validation_share=0.3",
    "data.max_skip_rate=0.5",
    "loader.workers=0",
    "health.every=1",
    "health.settle_updates=50",
    "health.count_updates=50",
    "health.count_rows=0",
    "health.early_share=1.0",
    "health.wait_share=0.6",
    "health.throughput_share=0.3",
]
SHORT = ["health.window=4", "stop_after=8"]
LONG = ["health.window=10"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    from openwavlm.labels.assign import assign_labels
    from openwavlm.labels.fit import fit_codebook

    folder = tmp_path_factory.mktemp("data")
    shards = make_shard_set(folder, speakers=8, utterances=4, seconds=(1.0, 4.0))
    noise = make_shard_set(folder / "noise", speakers=2, utterances=3, seconds=(0.5, 2.0), seed=9)
    fit_codebook([shards], folder / "codebook", clusters=10, engine="minibatch", min_frames_per_cluster=20, validation_share=0.3)
    assign_labels(shards, folder / "codebook", folder / "labels")
    return [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={folder / 'labels'}", f"data.noise={noise}"]


@pytest.fixture(scope="module")
def sound(data, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("sound")
    assert launch([*SETTINGS, *LONG, *data, "loader.workers=1"], directory, patch=steady_clock) == [0]
    return directory


def findings(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "health.csv").read_text().splitlines()))


def fired(directory: Path) -> set[str]:
    return {row["rule"] for row in findings(directory)}


def test_a_sound_run_fires_nothing_and_is_judged_by_every_rule_but_the_count_table(sound):
    rules = json.loads((sound / "summary.json").read_text())["health"]
    assert findings(sound) == []
    assert {name for name, state in rules.items() if not state["judged"]} == {"count_table", "throughput"}
    assert len(rules) == 11 and rules["unigram"]["last_step"] == 60
    assert rules["unigram"]["value"] < rules["unigram"]["threshold"] < np.log(10)


def test_losses_and_weights_are_bit_equal_without_the_rules(data, sound, tmp_path):
    assert launch([*SETTINGS, *data, "health.enabled=false"], tmp_path) == [0]
    assert (tmp_path / "metrics.csv").read_bytes() == (sound / "metrics.csv").read_bytes()
    first, second = (
        torch.load(run / "checkpoints" / "step-00000060.ckpt", weights_only=True)["state_dict"] for run in (tmp_path, sound)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert "health" not in json.loads((tmp_path / "summary.json").read_text()) and findings(tmp_path) == []


# --- planted faults -----------------------------------------------------------------------------------------------------


WINDOWS = ["health.window=4", "stop_after=32"]
FAULTS = {
    "unigram": (labels_shuffled, LONG),
    "count_table": (nothing, [*LONG, "health.count_rows=20"]),
    "unmasked_accuracy": (wrong_initialisation, ["health.window=40", "callbacks.unmasked_every=1", "stop_after=40"]),
    "perplexity": (collapsed_embeddings, [*LONG, "health.settle_updates=10", "health.unigram_ratio=1e3", "stop_after=20"]),
    "gradient_flow": (blocked_layer, SHORT),
    "gradient_growth": (partial(growing_gradient, 24), WINDOWS),
    "dead_channels": (dead_channels, SHORT),
    "skipped_updates": (infinite_gradients, SHORT),
    "data_wait": (slow_loader, [*SHORT, "loader.workers=1"]),
    "throughput": (partial(slower_updates, 24), WINDOWS),
    "unreadable_rows": (unreadable_rows, SHORT),
}


def _together(*patches: Callable[[], None]) -> None:
    for patch in patches:
        patch()


@pytest.mark.parametrize("rule", FAULTS)
def test_a_planted_fault_fires_its_own_rule_and_no_other(data, tmp_path, rule):
    patch, overrides = FAULTS[rule]
    if rule not in ("data_wait", "throughput"):
        patch = partial(_together, steady_clock, patch)
    assert launch([*SETTINGS, *data, *overrides], tmp_path, patch=patch) == [0]
    assert fired(tmp_path) == {rule}


# --- resuming, processes, stopping --------------------------------------------------------------------------------------

WATCHED = [
    *SETTINGS,
    "health.window=4",
    "health.every=2",
    "health.wait_share=1",
    "health.throughput_share=0",
    "health.recovery=1",
]


def states(directory: Path) -> dict[str, dict[str, float]]:
    rules = json.loads((directory / "summary.json").read_text())["health"]
    return {name: state for name, state in rules.items() if name not in ("data_wait", "throughput")}


def _early_faults() -> None:
    unreadable_rows()
    dead_channels()


def test_findings_are_the_same_through_a_stop_within_a_window(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert launch([*WATCHED, *data, "stop_after=24"], whole, patch=_early_faults) == [0]
    for stop in (6, 13, 24):
        assert launch([*WATCHED, *data, f"stop_after={stop}", "loader.workers=1"], parts, patch=_early_faults) == [0]
    assert fired(whole) == {"dead_channels", "unreadable_rows"}
    assert (parts / "health.csv").read_bytes() == (whole / "health.csv").read_bytes()
    assert states(parts) == states(whole)


def test_findings_past_the_checkpoint_are_cut_and_made_again(data, tmp_path):
    settings = [*WATCHED, *data, "callbacks.checkpoint_every=6"]
    assert launch([*settings, "stop_after=9"], tmp_path, patch=dead_channels) == [0]
    before = (tmp_path / "health.csv").read_bytes()
    for path in tmp_path.glob("checkpoints/step-00000009*"):
        path.unlink()
    with (tmp_path / "health.csv").open("a") as file:
        file.write('8,"unigram",1.0,1.0,"after the checkpoint"\n')
    assert launch([*settings, "stop_after=9"], tmp_path, patch=dead_channels) == [0]
    assert (tmp_path / "health.csv").read_bytes() == before and fired(tmp_path) == {"dead_channels"}


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_the_figures_are_the_same_on_two_processes(data, tmp_path, strategy):
    settings = [*WATCHED, *data, "stop_after=8", "optim.lr=1e-4"]
    assert launch(settings, tmp_path / "one", patch=dead_channels) == [0]
    two = [*settings, f"trainer.strategy={strategy}"]
    assert launch(two, tmp_path / "two", world_size=2, patch=dead_channels) == [0, 0]
    first, second = states(tmp_path / "one"), states(tmp_path / "two")
    assert fired(tmp_path / "two") == {"dead_channels"}
    for name, state in first.items():
        assert second[name] == pytest.approx(state, rel=1e-4), name
    kept = [torch.load(next((tmp_path / run).glob("checkpoints/*08.ckpt")), weights_only=True) for run in ("one", "two")]
    norms = [checkpoint["openwavlm"]["health"]["gradients"] for checkpoint in kept]
    assert set(norms[0]) == {"extractor", "projection", "positions", "layer_01", "layer_02", "head"}
    assert all(norms[1][block] == pytest.approx(norms[0][block], rel=1e-3) for block in norms[0])


def test_a_rule_that_fires_stops_the_run_where_the_config_says_so_and_the_same_command_goes_on(data, tmp_path):
    settings = [*WATCHED, *data, "optim.updates=12", "health.action=stop"]
    assert launch(settings, tmp_path, patch=dead_channels) == [0]
    steps = [int(path.stem.split("-")[1]) for path in tmp_path.glob("checkpoints/*.ckpt")]
    assert len(steps) == 1 and 4 < steps[0] < 8
    assert launch(settings, tmp_path, patch=dead_channels) == [0]
    assert json.loads((tmp_path / "summary.json").read_text())["complete"]
    assert [(row["step"], row["rule"]) for row in findings(tmp_path)] == [("4", "dead_channels")]
