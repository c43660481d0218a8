"""A run's report stands on the run's own batches: what is shown is what was trained on."""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import yaml

from openwavlm.report.rebuild import TrainingData, measure_realised, mixtures, rebuild_step, rebuild_steps
from openwavlm.runs.gather import gather
from openwavlm.runs.replay import rebuild_update
from openwavlm.runtime.sealed import sealed
from openwavlm.training.config import RunConfig
from programs import run_program
from runs import TINY_MODEL, launch
from synthetic import make_shard_set

SETTINGS = [
    "experiment=wavlm_nano",
    "name=test",
    *TINY_MODEL,
    "mixing.prob=0.6",
    "mixing.noise_prob=0.3",
    "batch.seconds=8",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.updates=6",
    "optim.warmup_updates=0",
    "callbacks.validate_every=3",
    "data.validation_share=0.3",
    "loader.workers=0",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    from openwavlm.labels.assign import assign_labels
    from openwavlm.labels.fit import fit_codebook

    folder = tmp_path_factory.mktemp("data")
    shards = make_shard_set(folder, speakers=8, utterances=3, seconds=(1.0, 4.0))
    noise = make_shard_set(folder / "noise", speakers=2, utterances=2, seconds=(0.5, 2.0), seed=9)
    fit_codebook([shards], folder / "codebook", clusters=10, engine="minibatch", min_frames_per_cluster=20, validation_share=0.3)
    assign_labels(shards, folder / "codebook", folder / "labels")
    data = [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={folder / 'labels'}", f"data.noise={noise}"]
    directory = tmp_path_factory.mktemp("runs") / "test"
    assert launch(SETTINGS + data, directory) == [0]
    return directory


@contextmanager
def opened_run(run: Path) -> Iterator[TrainingData]:
    with closing(TrainingData(RunConfig.of(yaml.safe_load((run / "config.yaml").read_text())))) as data:
        yield data


def test_the_command_writes_a_page_and_keeps_the_summary(run, tmp_path):
    outcome = run_program(tmp_path, "openwavlm", "report", f"run={run}")
    assert outcome.status == 0, outcome.stderr
    page = (run / "report.html").read_text()
    assert "label frequencies (unigram)" in page and "data:audio/wav" in page and "agree with metrics.csv" in page
    summary = json.loads((run / "summary.json").read_text())
    assert summary["complete"] and summary["iterations"][0]["masked"]["unigram"]["cross_entropy"] > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stderr.txt", "stdout.txt"]


def test_rebuilt_batches_are_those_of_the_run(run):
    iteration = gather(run, micro_batches=12)
    assert iteration.realised is not None and iteration.realised.as_recorded is True
    assert (
        iteration.realised.steps == (1, 2, 3, 4, 5, 6) and iteration.realised.mixed_rows == iteration.metrics["mixed_rows"].sum()
    )
    with opened_run(run) as data:
        part = measure_realised(data, iteration.metrics, micro_batches=7)
        assert part.steps == (1, 2, 3, 4) and part.as_recorded is True
        iteration.metrics["masked_frames"][1] += 1
        assert measure_realised(data, iteration.metrics, micro_batches=7).as_recorded is False
        assert measure_realised(data, None, micro_batches=7).as_recorded is None


def test_the_example_is_a_mixture_with_speech_that_changes_the_overlap_alone(run):
    example = gather(run).mixtures[0]
    assert len(example.clean) == len(example.mixed) and len(example.mask) == len(example.labels)
    changed = (example.clean != example.mixed).nonzero()[0]
    assert len(changed) and changed.min() >= example.start and changed.max() < example.start + example.length


def test_measured_levels_of_whole_utterances_are_those_drawn(run):
    with opened_run(run) as data:
        found = [m for part in rebuild_steps(data, 16) for m in mixtures(part.batch, data.builder.draws.mixing)]
    audible = [m for m in found if np.isfinite(m["energy_ratio_db"])]
    assert len(audible) > 5 and {m["noise"] for m in audible} == {True, False}
    assert max(abs(m["energy_ratio_db"] - m["drawn_db"]) for m in audible) < 0.1
    assert max(abs(m["overlap_snr_db"] - m["drawn_db"]) for m in audible if np.isfinite(m["overlap_snr_db"])) > 0.5


def test_an_update_is_rebuilt_the_same_at_every_call(run):
    with opened_run(run) as data:
        first, second = ([part.batch.fingerprint() for part in rebuild_step(data, 1)] for _ in range(2))
    assert first == second and len(set(first)) == 2
    replayed = [micro.batch.fingerprint() for micro in rebuild_update(run, 1).micro_batches]
    assert first == replayed, "report and replay build the same batches"


def test_a_run_whose_data_are_gone_or_changed_is_still_reported(run, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    text = (copy / "config.yaml").read_text()
    record = json.loads((copy / "run.json").read_text())
    (copy / "config.yaml").write_text(text.replace("/labels", "/gone"))
    iteration = gather(copy)
    assert not iteration.mixtures and "could not be opened" in iteration.notes[0]
    (copy / "config.yaml").write_text(text)
    record["fingerprints"]["codebook"] = "0"
    (copy / "run.json").write_text(json.dumps(sealed(record)))
    assert "other content now" in gather(copy).notes[0]
    (copy / "validation.csv").unlink()
    outcome = run_program(tmp_path, "openwavlm", "report", f"run={copy}")
    assert outcome.status == 0, outcome.stderr
    assert "Nothing was validated" in (copy / "report.html").read_text()


def test_two_runs_that_follow_each_other_share_one_page(run, tmp_path):
    outcome = run_program(
        tmp_path, "openwavlm", "report", f"run=[{run},{run}]", f"output={tmp_path / 'chain'}", "title='The chain'"
    )
    assert outcome.status == 0, outcome.stderr
    page = (tmp_path / "chain" / "report.html").read_text()
    assert "test (2)" in page and "<h1>The chain</h1>" in page


def test_the_page_of_two_runs_is_one_of_its_own_and_names_them_and_their_differences(run, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(run, tmp_path / name, ignore=shutil.ignore_patterns("report.html", "tensorboard"))
    config = (tmp_path / "two" / "config.yaml").read_text()
    (tmp_path / "two" / "config.yaml").write_text(config.replace("clip_norm: ", "clip_norm: 9"))
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    del record["configs"]  # the checksums of config.yaml
    (tmp_path / "two" / "run.json").write_text(json.dumps(sealed(record)))
    outcome = run_program(tmp_path, "openwavlm", "report", "run=[one,two]")
    assert outcome.status == 0, outcome.stderr
    assert not any((tmp_path / name / "report.html").exists() for name in ("one", "two"))
    page = (tmp_path / "reports" / "one+two" / "report.html").read_text()
    assert "<h1>OpenWavLM: runs one and two</h1>" in page
    table = page[page.index('id="differences"') : page.index('id="progress"')]
    assert "optim.clip_norm" in table and "seed" not in table
    assert re.search(r"<th>masked accuracy</th><td>0\.\d{3}</td><td>0\.\d{3}</td>", page)


def test_a_folder_that_is_no_run_is_refused_in_one_sentence(tmp_path):
    assert "is no run directory" in run_program(tmp_path, "openwavlm", "report", "run=nowhere").error()
