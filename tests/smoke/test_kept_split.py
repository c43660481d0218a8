"""A run keeps the share by which its first launch split the speakers: new runs, runs of before the rule, branches, added data."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from openwavlm.evaluation.unseen import unseen_rows
from openwavlm.labels.assign import assign_labels
from openwavlm.runs.check import check_launch
from openwavlm.runs.compose import plain
from openwavlm.runs.export import export_run
from openwavlm.runs.gather import gather
from openwavlm.runs.launch import train
from openwavlm.runs.replay import rebuild_update
from openwavlm.shards.index import Index
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.splits import split_hash
from programs import run_program
from runs import SETTINGS, compose, launch, make_data, table, weights
from synthetic import make_corpus

# No speaker has a hash below this share; the codebook left out those below .3.
FEW = [*SETTINGS, "data.validation_share=0.001", "optim.updates=6", "callbacks.validate_every=2"]


def before_the_rule() -> None:
    """Makes this process split, and record its launch, as versions before 2026-11-29 did."""
    from openwavlm.batches import sources
    from openwavlm.runs import assemble

    real = assemble.segment_entry
    sources.settled_share = lambda indexes, *, share, split_seed, key: share
    assemble.segment_entry = lambda *values: {key: of for key, of in real(*values).items() if key != "validation_share"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def shards(data: list[str]) -> Path:
    return Path(data[0].split("=")[1])


@pytest.fixture(scope="module")
def old(data: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of a version before the rule, with nobody held out: `whole`, and `part`, which was stopped after four updates."""
    folder = tmp_path_factory.mktemp("old")
    assert launch([*FEW, *data], folder / "whole", patch=before_the_rule) == [0]
    assert launch([*FEW, *data, "stop_after=4"], folder / "part", patch=before_the_rule) == [0]
    assert json.loads((folder / "whole" / "summary.json").read_text())["validation"] == {}
    return folder


def first_speaker(shards: Path) -> np.ndarray:
    """Rows of the speaker with the smallest hash."""
    index = Index.open(shards)
    first = min(range(1, len(index.speakers)), key=lambda number: split_hash(index.speakers[number]))
    return index.speaker[:] == first


def record(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())


def test_a_new_run_holds_out_the_first_speaker_says_so_and_records_the_share(data, shards, tmp_path):
    done = run_program(tmp_path, "openwavlm", "train", f"hydra.run.dir={tmp_path / 'run'}", *FEW, *data)
    assert done.status == 0, done
    rows = first_speaker(shards)
    seconds = Index.open(shards).num_samples[rows].sum() / 16_000
    assert "no speaker has a hash below data.validation_share=0.001: the one with the smallest is held out" in done.stderr
    assert f"{seconds:.1f} s of 1 speakers ({rows.sum()} utterances) held out" in done.stderr
    assert len(table(tmp_path / "run", "validation.csv")) == 3
    content = record(tmp_path / "run")
    share = content["segments"][0]["validation_share"]
    assert 0.001 < share < 0.3 and content["trained_on"][0]["validation_share"] == share
    trained_on = json.loads((export_run(tmp_path / "run") / "openwavlm.json").read_text())["trained_on"]
    assert trained_on["validation_share"] == share
    assert unseen_rows(Index.open(shards), trained_on).tolist() == rows.tolist()
    for step in (2, 5):
        assert rebuild_update(tmp_path / "run", step).step == step
    assert gather(tmp_path / "run").data["validation_speakers"] == 1


def test_an_older_run_is_resumed_to_equal_weights_with_nobody_held_out(data, shards, old, tmp_path):
    shutil.copytree(old / "part", tmp_path / "run")
    assert "validation_share" not in record(tmp_path / "run")["segments"][0]
    assert launch([*FEW, *data], tmp_path / "run") == [0]
    expected, found = weights(old / "whole", 6), weights(tmp_path / "run", 6)
    assert expected.keys() == found.keys() and all((expected[name] == found[name]).all() for name in expected)
    assert [row["loss"] for row in table(tmp_path / "run")] == [row["loss"] for row in table(old / "whole")]
    segments = record(tmp_path / "run")["segments"]
    assert segments[1]["validation_share"] == 0.001 and segments[0]["plan"]["key"] == segments[1]["plan"]["key"]
    for step in (2, 6):
        assert rebuild_update(tmp_path / "run", step).step == step
    assert gather(tmp_path / "run").data["validation_rows"] == 0
    trained_on = json.loads((export_run(tmp_path / "run") / "openwavlm.json").read_text())["trained_on"]
    assert trained_on["validation_share"] == 0.001 and not unseen_rows(Index.open(shards), trained_on).any()


def test_another_share_splits_a_resumed_run_anew_if_it_is_allowed(data, shards, old, tmp_path):
    shutil.copytree(old / "part", tmp_path / "run")
    other = [*FEW, *data, "data.validation_share=0.002"]
    with pytest.raises(ValueError, match=r"data\.validation_share: 0\.001 -> 0\.002"):
        train(compose(other), tmp_path / "run")
    assert launch([*other, "allow_change=[data.validation_share]"], tmp_path / "run") == [0]
    segments = record(tmp_path / "run")["segments"]
    assert segments[1]["validation_share"] > 0.002 and [of["plan"]["origin"] for of in segments] == [0, 4]
    trained_on = json.loads((export_run(tmp_path / "run") / "openwavlm.json").read_text())["trained_on"]
    assert not unseen_rows(Index.open(shards), trained_on).any(), "the first launch trained on all"


def test_a_branch_has_the_split_of_its_run(data, old, tmp_path):
    branch = [*FEW, *data, f"branch_from={old / 'part' / 'checkpoints' / 'step-00000004.ckpt'}"]
    check_launch(plain(compose(branch)), tmp_path / "run", {})
    assert launch(branch, tmp_path / "run") == [0]
    assert record(tmp_path / "run")["segments"][0]["validation_share"] == 0.001
    expected, found = weights(old / "whole", 6), weights(tmp_path / "run", 6)
    assert all((expected[name] == found[name]).all() for name in expected)


def test_added_speakers_move_nobody_of_a_run(data, tmp_path):
    folder = Path(data[0].split("=")[1]).parent
    shutil.copytree(folder, tmp_path / "data")
    places = [override.replace(str(folder), str(tmp_path / "data")) for override in data]
    shards, run = tmp_path / "data" / "shard-set", tmp_path / "run"
    assert launch([*FEW, *places, "stop_after=3"], run) == [0]
    share = record(run)["segments"][0]["validation_share"]
    more = make_corpus(tmp_path / "more", speakers=20, utterances=1, seconds=(1.0, 2.0), seed=4)
    names = [f"new{number:02d}" for number in range(20)]
    smaller = [name for name in names if split_hash(f"synthetic/{name}") / 2**64 < share]
    assert smaller, "one of them has a smaller hash than the held-out speaker"
    for name, place in zip(names, sorted(more.iterdir()), strict=True):
        shutil.copytree(place, tmp_path / "data" / "corpus" / name)
    settings = {"source": "synthetic", "speaker_folder": 1, "utterances_per_shard": 8, "min_seconds": 0.5}
    make_shards(input=tmp_path / "data" / "corpus", output=shards, **settings)
    assign_labels(shards, tmp_path / "data" / "codebook", tmp_path / "data" / "labels")
    assert launch([*FEW, *places, "allow_change=[data]"], run) == [0]
    segments = record(run)["segments"]
    assert [of["validation_share"] for of in segments] == [share, share]
    assert gather(run).data["validation_speakers"] == 1 + len(smaller)
