"""The index: what is written is what is read, and damage is refused in a sentence."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from openwavlm.data.index import COLUMNS, MEMBER, Index, ShardInfo, index_fingerprint, shard_identity, write_index

ROWS = (3, 0, 4)


def columns_of(rows: tuple[int, ...]) -> dict[str, np.ndarray]:
    total = sum(rows)
    columns = {name: np.arange(total, dtype=dtype) % 3 for name, dtype in COLUMNS.items()}
    columns["shard"] = np.repeat(np.arange(len(rows)), rows)
    columns["key"] = np.arange(total, dtype=np.uint64) + np.uint64(2**63)
    return columns


def shards_of(rows: tuple[int, ...]) -> list[ShardInfo]:
    return [ShardInfo(f"shards/000/{n:06d}-000.tar", count, 1024, "c", f"identity{n}") for n, count in enumerate(rows)]


TABLES = {
    "speakers": ["", "a/é", "a/1"],
    "recordings": ["", "a/r s", "a/2"],
    "sources": ["", "a", "b"],
    "languages": ["", "en", "de"],
}
KEYS = [f"key{n}" for n in range(sum(ROWS))]


@pytest.fixture
def shard_set(tmp_path: Path) -> Path:
    members = np.array([(1, 0, 5, 7, 8)], MEMBER)
    write_index(tmp_path, columns=columns_of(ROWS), tables=TABLES, shards=shards_of(ROWS), keys=KEYS, members=members)
    return tmp_path


def edit(path: Path, **changes: object) -> None:
    mark = path / "index" / "shards.json"
    mark.write_text(json.dumps(json.loads(mark.read_text()) | changes))


def test_an_index_reads_back_as_it_was_written(shard_set: Path) -> None:
    index = Index.open(shard_set)
    assert len(index) == 7
    assert index.first_row.tolist() == [0, 3, 3, 7]
    assert [index.speakers, index.recordings, index.sources, index.languages] == list(TABLES.values())
    assert index.keys == KEYS
    assert index.members["num_samples"].tolist() == [5]
    for name, dtype in COLUMNS.items():
        assert getattr(index, name).dtype == dtype
        np.testing.assert_array_equal(getattr(index, name), columns_of(ROWS)[name])


def test_a_pickled_index_is_its_path(shard_set: Path) -> None:
    index = Index.open(shard_set)
    assert len(pickle.dumps(index)) < 500
    assert pickle.loads(pickle.dumps(index)).fingerprint == index.fingerprint


def test_columns_cannot_be_written_through_the_index(shard_set: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        Index.open(shard_set).num_samples[0] = 1


def test_the_fingerprint_is_a_set_of_contents_without_places(tmp_path: Path) -> None:
    assert index_fingerprint(["a", "b"]) == index_fingerprint(["b", "a"]) != index_fingerprint(["a"])
    rows = [np.array(values, np.uint64) for values in ([1, 2], [3, 4], [5, 6])]
    reference = shard_identity(*rows)
    for changed in range(3):
        other = [values[::-1] if number == changed else values for number, values in enumerate(rows)]
        assert shard_identity(*other) != reference


def test_duplicate_keys_refuse_the_build(tmp_path: Path) -> None:
    columns = columns_of(ROWS)
    columns["key"][5] = columns["key"][1]
    with pytest.raises(ValueError, match=r"rows 1 and 5 share 'key1' \(1 such pairs\).*remove one"):
        write_index(tmp_path, columns=columns, tables=TABLES, shards=shards_of(ROWS), keys=KEYS)
    assert not (tmp_path / "index").exists()


def test_rows_out_of_shard_order_are_refused(tmp_path: Path) -> None:
    columns = columns_of(ROWS)
    columns["shard"] = columns["shard"][::-1]
    with pytest.raises(ValueError, match="shard order"):
        write_index(tmp_path, columns=columns, tables=TABLES, shards=shards_of(ROWS))


def test_a_folder_without_a_finished_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no finished index .*make_shards"):
        Index.open(tmp_path)


def test_a_newer_format_is_refused_by_name(shard_set: Path) -> None:
    edit(shard_set, format_version=2)
    with pytest.raises(ValueError, match="format 2, but this version of OpenWavLM reads up to 1: update"):
        Index.open(shard_set)


@pytest.mark.parametrize("damage", ["column", "short column", "type", "json", "rows", "identity"])
def test_a_damaged_index_is_refused_with_the_way_out(shard_set: Path, damage: str) -> None:
    folder = shard_set / "index"
    if damage == "column":
        (folder / "pcm.npy").unlink()
    elif damage == "short column":
        (folder / "pcm.npy").write_bytes((folder / "pcm.npy").read_bytes()[:-8])
    elif damage == "type":
        np.save(folder / "pcm.npy", np.zeros(7, np.int32))
    elif damage == "json":
        (folder / "shards.json").write_text("{")
    elif damage == "rows":
        edit(shard_set, rows=8)
    else:
        edit(shard_set, fingerprint="0")
    with pytest.raises(ValueError, match=r"is damaged .*: delete .*index and run data_prep/make_shards"):
        Index.open(shard_set)


def test_a_million_rows_are_opened_without_being_read(tmp_path: Path) -> None:
    rows = (1000,) * 1000
    write_index(tmp_path, columns=columns_of(rows), tables=TABLES, shards=shards_of(rows))
    index = Index.open(tmp_path)
    assert len(index) == 1_000_000
    assert index.keys == []
    assert not index.num_samples.flags.owndata
