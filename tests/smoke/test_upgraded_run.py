"""A run is bound to the names of its shards, and a run of version 1 is upgraded and goes on to equal weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from format_one import meta_of_format_one, run_of_format_one, shards_of_format_one, without_names
from openwavlm.runs.launch import train
from openwavlm.runs.replay import replay
from openwavlm.runtime.sealed import sealed
from openwavlm.shards.index import COLUMNS, TABLES, Index
from openwavlm.shards.index_writer import write_index
from openwavlm.shards.splits import validation_rows
from programs import run_program
from runs import SETTINGS, compose, launch, make_data, table, weights


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    make_data(folder / "data")
    return folder


def data_of(folder: Path) -> list[str]:
    data = folder / "data"
    sources = [f"data.sources.speech.shards={data / 'shard-set'}", f"data.sources.speech.labels={data / 'labels'}"]
    return [*SETTINGS, *sources, f"data.noise={data / 'noise' / 'shard-set'}", "optim.updates=6"]


def permute_speakers(shards: Path) -> None:
    """Rewrites the index with the speakers of its rows turned around: every checksum holds."""
    index = Index.open(shards)
    columns = {name: getattr(index, name) for name in COLUMNS} | {"speaker": index.speaker[::-1]}
    tables = {name: getattr(index, name) for name in TABLES}
    write_index(shards, columns=columns, tables=tables, shards=index.shards, keys=index.keys, members=index.members)


def test_a_run_of_version_1_is_upgraded_by_one_command_and_goes_on_to_equal_weights(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    settings, whole, run = data_of(tmp_path), tmp_path / "whole", tmp_path / "run"
    assert launch(settings, whole) == [0]
    assert launch([*settings, "stop_after=4"], run, patch=without_names) == [0]
    for shards in (tmp_path / "data" / "shard-set", tmp_path / "data" / "noise" / "shard-set"):
        shards_of_format_one(shards)
    meta_of_format_one(tmp_path / "data" / "labels")
    run_of_format_one(run)
    tars = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / "data").rglob("*.tar")}
    with pytest.raises(ValueError, match=r"has format 1, .*openwavlm upgrade"):
        train(compose(settings), run)
    upgraded = run_program(tmp_path, "openwavlm", "upgrade", "run")
    assert upgraded.status == 0 and upgraded.stdout.count(": upgraded") == 4, upgraded
    assert launch(settings, run) == [0]
    expected, found = weights(whole, 6), weights(run, 6)
    assert expected.keys() == found.keys() and all((expected[name] == found[name]).all() for name in expected)
    assert [row["loss"] for row in table(run)] == [row["loss"] for row in table(whole)]
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tars} == tars
    prints = [segment["fingerprints"] for segment in json.loads((run / "run.json").read_text())["segments"]]
    assert len(prints) == 2 and prints[0] == prints[1] and "metadata.speech" in prints[0]


def test_a_run_does_not_go_on_with_other_names_unless_that_is_allowed_and_then_with_another_plan(
    place: Path, tmp_path: Path
) -> None:
    shutil.copytree(place / "data", tmp_path / "data")
    settings, run, shards = data_of(tmp_path), tmp_path / "run", tmp_path / "data" / "shard-set"
    assert launch([*settings, "stop_after=3"], run) == [0]
    file = shards / "index" / "speaker.npy"
    content, split = file.read_bytes(), validation_rows(Index.open(shards), share=0.3, split_seed=0)
    np.save(file, np.load(file)[::-1])
    with pytest.raises(ValueError, match=rf"{file} does not have its checksum"):
        train(compose(settings), run)
    with pytest.raises(ValueError, match=rf"{file} does not have its checksum"):
        replay(run, 2, output=tmp_path / "replay")
    file.write_bytes(content)
    permute_speakers(shards)
    moved = validation_rows(Index.open(shards), share=0.3, split_seed=0)
    assert (moved != split).any()
    labels = tmp_path / "data" / "labels"
    with pytest.raises(ValueError, match=rf"speakers, .* of {shards}/.* when it was labelled for {labels}"):
        train(compose(settings), run)
    meta = json.loads((labels / "meta.json").read_text())
    by_identity = {shard.identity: shard.metadata for shard in Index.open(shards).shards}
    for pack in meta["packs"]:
        for shard in pack["shards"]:
            shard["metadata"] = by_identity[shard["identity"]]
    (labels / "meta.json").write_text(json.dumps(sealed(meta)))
    with pytest.raises(ValueError, match=r"have changed since the codebook of .* was fitted on it"):
        train(compose(settings), run)
    del meta["codebook_fitted"]["metadata"]
    (labels / "meta.json").write_text(json.dumps(sealed(meta)))
    with pytest.raises(
        ValueError, match=r"the data of this run has changed since it began \(metadata\.speech in .*\): .*allow_change"
    ):
        train(compose(settings), run)
    assert launch([*settings, "allow_change=[data]", "stop_after=5"], run) == [0]
    segments = json.loads((run / "run.json").read_text())["segments"]
    # A split that moved is another plan: it begins with the next data epoch instead of going on in the middle of the old one.
    assert [segment["plan"]["origin"] for segment in segments] == [0, 3]
