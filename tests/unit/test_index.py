"""The index: what is written is what is read, and damage is refused in a sentence."""

import errno
import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.index import COLUMNS, MEMBER, NAMES, Index, ShardInfo, index_fingerprint, shard_identity, shard_metadata
from openwavlm.shards.index_writer import write_index

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


@pytest.fixture(scope="module")
def whole_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index whose columns and tables all have unequal neighbours; read only."""
    folder = tmp_path_factory.mktemp("set")
    members = np.array([(1, 0, 5, 7, 8), (2, 1, 6, 9, 10)], MEMBER)
    write_index(folder, columns=columns_of(ROWS), tables=TABLES, shards=shards_of(ROWS), keys=KEYS, members=members)
    return folder


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
    with pytest.raises(ValueError, match=r"no finished index .*make-shards"):
        Index.open(tmp_path)


def test_a_newer_format_is_refused_by_name(shard_set: Path) -> None:
    edit(shard_set, format_version=3)
    with pytest.raises(ValueError, match="format 3, but this version of OpenWavLM reads up to 2: update"):
        Index.open(shard_set)


def test_the_identity_of_names_is_a_hash_over_the_names_of_each_row_in_order(shard_set: Path) -> None:
    text = "a/é\na/r s\na\nen\na/1\na/2\nb\nde\n\n\n\n\n"  # rows 1, 2 and 3 of the last shard have ids 1, 2 and 0
    names = {
        "speaker": ["a/é", "a/1", ""],
        "recording": ["a/r s", "a/2", ""],
        "source": ["a", "b", ""],
        "language": ["en", "de", ""],
    }
    assert shard_metadata(names) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    index = Index.open(shard_set)
    assert index.names(4, 7) == {name: [*texts[:2], texts[2]] for name, texts in names.items()}
    lines = sorted(f"{shard.identity} {shard.metadata}" for shard in index.shards)
    assert index.metadata == hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()


@pytest.mark.parametrize("column", NAMES)
def test_another_name_of_one_row_is_another_identity_and_other_numbers_of_the_same_names_are_not(
    tmp_path: Path, column: str
) -> None:
    table, columns = NAMES[column], columns_of(ROWS)
    shards = shards_of(ROWS)
    reference = write_index(tmp_path / "a", columns=columns, tables=TABLES, shards=shards)
    renamed = columns | {column: np.where(np.arange(7) == 4, 2, columns[column])}
    changed = write_index(tmp_path / "b", columns=renamed, tables=TABLES, shards=shards)
    assert changed.metadata != reference.metadata and changed.fingerprint == reference.fingerprint
    assert [a.metadata == b.metadata for a, b in zip(reference.shards, changed.shards, strict=True)] == [True, True, False]
    numbers = np.array([0, 2, 1])
    again = write_index(
        tmp_path / "c",
        columns=columns | {column: numbers[columns[column].astype(int)]},
        tables=TABLES | {table: [TABLES[table][number] for number in numbers]},
        shards=shards,
    )
    assert again.metadata == reference.metadata


def permute(path: Path) -> None:
    """Moves the last entry of a column, or line of a table, to the front."""
    if path.suffix == ".npy":
        array = np.load(path)
        np.save(path, np.roll(array, 1))
    else:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[-1:] + lines[:-1]))


def swap(path: Path) -> None:
    """Swaps two unequal neighbours."""
    if path.suffix == ".npy":
        array = np.load(path)
        place = int(np.flatnonzero(array[1:] != array[:-1])[0])
        array[[place, place + 1]] = array[[place + 1, place]]
        np.save(path, array)
    else:
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-2] + lines[:-3:-1]))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def cut_at_a_line(path: Path) -> None:
    path.write_bytes(path.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[0] + b"\n")


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x\n")


def flip(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


FILES = [*(f"{name}.npy" for name in COLUMNS), *(f"{name}.txt" for name in (*TABLES, "keys")), "members.npy"]


@pytest.mark.parametrize("damage", [permute, swap, cut, cut_at_a_line, append, flip, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_every_column_and_table_that_is_not_as_it_was_written_is_refused_by_name(
    whole_set: Path, tmp_path: Path, name: str, damage
) -> None:
    folder = Path(shutil.copytree(whole_set / "index", tmp_path / "index"))
    before = (folder / name).read_bytes()
    damage(folder / name)
    assert not (folder / name).exists() or (folder / name).read_bytes() != before
    with pytest.raises(ValueError, match=rf"{folder}/{name} .*: delete {folder} and run openwavlm make-shards") as found:
        Index.open(tmp_path)
    assert type(found.value) is ValueError
    if name.endswith(".npy") and name != "members.npy" and damage not in (permute, swap, flip):
        with pytest.raises(ValueError, match=rf"{folder}/{name} "):  # size and type are checked where nothing else is read, too
            Index.open(tmp_path, check=False)
    elif name.endswith(".txt") and damage in (cut_at_a_line, append, Path.unlink):
        with pytest.raises(ValueError, match=rf"{folder}/{name} "):
            getattr(Index.open(tmp_path, check=False), name[:-4])


def damaged_marks(content: dict) -> dict[str, object]:
    first, second = content["shards"][:2]
    swapped = [first | {"identity": second["identity"]}, second | {"identity": first["identity"]}, *content["shards"][2:]]
    return {
        "text": "{",
        "list": "[]",
        "no shards": {**content, "shards": None},
        "fewer shards": {**content, "shards": content["shards"][:-1]},
        "swapped identities": {**content, "shards": swapped},
        "another checksum": {**content, "shards": [first | {"checksum": "0"}, *content["shards"][1:]]},
        "another name": {**content, "shards": [first | {"name": "x.tar"}, *content["shards"][1:]]},
        "text for a number": {**content, "shards": [first | {"rows": "3"}, *content["shards"][1:]]},
        "a number too large": {**content, "rows": 10**12},
        "a negative number": {**content, "rows": -1},
        "no files": {name: value for name, value in content.items() if name != "files"},
        "another fingerprint": {**content, "fingerprint": "0"},
        "another metadata": {**content, "metadata": "0"},
        "no seal": {name: value for name, value in content.items() if name != "seal"},
        "no version": {name: value for name, value in content.items() if name != "format_version"},
        "version of another type": {**content, "format_version": "2"},
    }


@pytest.mark.parametrize("sealed", [False, True])
def test_shards_json_that_is_not_as_it_was_written_is_refused_by_name(whole_set: Path, tmp_path: Path, sealed: bool) -> None:
    folder = Path(shutil.copytree(whole_set / "index", tmp_path / "index"))
    mark = folder / "shards.json"
    for what, content in damaged_marks(json.loads(mark.read_text())).items():
        if sealed and (not isinstance(content, dict) or what in ("another checksum", "another name", "no seal")):
            continue  # a seal over another content stands for a program that wrote it so
        if sealed:
            write_sealed(mark, {name: value for name, value in content.items() if name != "seal"})
        else:
            mark.write_text(content if isinstance(content, str) else json.dumps(content))
        if what == "swapped identities" and sealed:
            continue
        with pytest.raises(
            ValueError, match=rf"{folder if sealed else mark}.*: delete {folder} and run openwavlm make-shards"
        ) as found:
            Index.open(tmp_path)
        assert type(found.value) is ValueError, what


def test_an_error_of_the_machine_is_not_taken_for_a_damaged_index(whole_set: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("openwavlm.runtime.files.map_open", fail)
    with pytest.raises(OSError, match=rf"Input/output error: '{whole_set}/index/shard.npy'"):
        Index.open(whole_set)


def test_a_million_rows_are_opened_without_being_read(tmp_path: Path) -> None:
    rows = (1000,) * 1000
    write_index(tmp_path, columns=columns_of(rows), tables=TABLES, shards=shards_of(rows))
    index = Index.open(tmp_path, check=False)
    assert len(index) == 1_000_000
    assert index.keys == []
    assert not index.num_samples.flags.owndata and not index.num_samples.flags.writeable
