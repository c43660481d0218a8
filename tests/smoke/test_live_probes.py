"""Probes while training: the same figures on any number of processes, none of which moves the run."""

import json
import logging
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.training.heat_map import heat_map, read_probes
from runs import SETTINGS, launch, make_data, make_probes, phone_times, table, weights


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def probes(tmp_path_factory) -> list[str]:
    return make_probes(tmp_path_factory.mktemp("probes"))


RUN = [*SETTINGS, "optim.updates=10", "batch.seconds=12"]


@pytest.fixture(scope="module")
def probed(data, probes, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("probed")
    assert launch([*RUN, *data, *probes], directory, patch=partial(logging.getLogger().setLevel, logging.INFO)) == [0]
    return directory


def test_a_probe_writes_each_layers_figure_beside_what_needs_no_training(probed):
    rows = table(probed, "probes.csv")
    assert [int(row["step"]) for row in rows] == [4, 8, 10]
    assert list(rows[0]) == ["step", "layer_0", "layer_1", "layer_2"]
    assert all(0.3 < float(row[f"layer_{layer}"]) <= 1 for row in rows for layer in range(3))
    baselines = json.loads((probed / "probe_baselines.json").read_text())["baselines"]
    spectral = {name + context for name in ("mfcc", "mfcc_norm", "logmel_raw", "logmel") for context in ("", "_context")}
    assert set(baselines) == spectral | {"untrained"}
    said = (probed / "logs" / "rank-0000.log").read_text()
    assert f"MFCC ± 5 normalised {baselines['mfcc_norm_context']:.3f}" in said and "log-mel ± 5 raw" in said
    assert "of the work of training" in said and "phones of development speakers: layer" in said


def test_probing_moves_no_training_figure(data, probed, tmp_path):
    assert launch([*RUN, *data], tmp_path) == [0]
    assert (tmp_path / "metrics.csv").read_bytes() == (probed / "metrics.csv").read_bytes()
    first, second = weights(tmp_path, 10), weights(probed, 10)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_find_the_same_figures(data, probes, probed, tmp_path, strategy):
    overrides = [*RUN, *data, *probes, f"trainer.strategy={strategy}", "stop_after=4"]
    assert launch(overrides, tmp_path, world_size=2) == [0, 0]
    first, second = table(probed, "probes.csv")[0], table(tmp_path, "probes.csv")[0]
    for name in ("layer_0", "layer_1", "layer_2"):
        assert float(first[name]) == pytest.approx(float(second[name]), abs=0.01)


def test_development_speech_that_the_run_trains_on_is_refused(data, probes, tmp_path):
    shards = data[0].split("=", 1)[1]
    phone_times(Path(shards), tmp_path / "phones.tsv")
    train = probes[0].split("=", 1)[1]
    phone_times(Path(train), tmp_path / "phones.tsv")
    overrides = [probes[0], f"probes.dev={shards}", f"probes.alignments={tmp_path / 'phones.tsv'}", "probes.every=4"]
    assert launch([*RUN, *data, *overrides], tmp_path / "run") == [1]
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_the_heat_map_has_a_row_a_layer_and_a_column_a_probe(probed):
    steps, accuracy = read_probes(probed / "probes.csv")
    assert steps.tolist() == [4, 8, 10] and accuracy.shape == (3, 3)
    figure = heat_map(probed / "probes.csv", {"mfcc": 0.6, "mfcc_context": 0.5, "logmel_raw_context": 0.7})
    (image,) = figure.axes[0].get_images()
    assert (
        np.array_equal(image.get_array(), accuracy) and "log-mel ± 5 raw 0.700, MFCC ± 5 raw 0.500" in figure.axes[0].get_title()
    )
