"""The label store: what it reads, and everything that it refuses."""

import hashlib
import json
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.labels import labelling as labels_module
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.label_packs import labels_file, rows_file
from openwavlm.labels.labelling import LabelPacks, upgrade_labels
from openwavlm.labels.pack import Pack
from openwavlm.labels.store import LabelStore
from openwavlm.labels.unfinished import ShardParts, write_parts
from openwavlm.runtime.sealed import sealed
from openwavlm.shards.index import COLUMNS, TABLES, Index, ShardInfo
from openwavlm.shards.index_writer import write_index
from synthetic_labels import CLUSTERS, make_index, true_labels, write_labels

ROWS = {0: 5, 1: 1, 2: 7, 3: 3}


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return make_index(tmp_path / "shards", ROWS)


@pytest.fixture
def labels(tmp_path: Path, index: Index) -> Path:
    write_labels(tmp_path / "labels", index, [[0, 1], [2, 3]])
    return tmp_path / "labels"


def change_meta(labels: Path, **values: object) -> None:
    meta = json.loads((labels / "meta.json").read_text())
    (labels / "meta.json").write_text(json.dumps(meta | values))


def test_every_row_reads_back_whole_and_in_part(index: Index, labels: Path) -> None:
    store = LabelStore.open(labels, index)
    for row in reversed(range(len(index))):
        expected = true_labels(index, row)
        found = store.read(row)
        assert found.dtype == np.uint16
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(store.read(row, 1, len(expected) - 1), expected[1:])
        np.testing.assert_array_equal(store.read(row, len(expected) // 2), expected[len(expected) // 2 :])
    assert store.num_classes == CLUSTERS
    assert store.label_counts.sum() == sum(len(true_labels(index, row)) for row in range(len(index)))


def test_labels_serve_shards_in_another_order_and_in_part(tmp_path: Path, labels: Path) -> None:
    part = make_index(tmp_path / "part", {3: 3, 0: 5})
    store = LabelStore.open(labels, part)
    for row in range(8):
        np.testing.assert_array_equal(store.read(row), true_labels(part, row))


def test_frames_beyond_a_row_are_refused(index: Index, labels: Path) -> None:
    store = LabelStore.open(labels, index)
    frames = len(store.read(3))
    for start, count in [(0, frames + 1), (frames, 1), (-1, 1), (2, -1)]:
        with pytest.raises(ValueError, match="the plan and the labels must come from the same index"):
            store.read(3, start, count)


def test_a_row_of_unreadable_audio_is_empty_and_counted(tmp_path: Path, index: Index) -> None:
    labels = tmp_path / "labels"
    meta = write_labels(labels, index, [[0, 1, 2, 3]], lambda row: None if row in (0, 7) else true_labels(index, row))
    store = LabelStore.open(labels, index)
    assert meta["unreadable_rows"] == 2
    assert len(store.read(7)) == len(store.read(7, 3, 4)) == 0
    np.testing.assert_array_equal(store.read(8), true_labels(index, 8))


def test_audio_below_one_frame_is_empty_and_not_unreadable(tmp_path: Path) -> None:
    short = make_index(tmp_path / "short", {0: 3}, num_samples=399)
    assert write_labels(tmp_path / "labels", short, [[0]])["unreadable_rows"] == 0
    assert len(LabelStore.open(tmp_path / "labels", short).read(1)) == 0


def test_a_pickled_store_is_small_and_reads_the_same(index: Index, labels: Path) -> None:
    store = LabelStore.open(labels, index)
    store.read(0)
    copy = pickle.loads(pickle.dumps(store))
    assert len(pickle.dumps(store)) < 2000
    np.testing.assert_array_equal(copy.read(9), store.read(9))
    assert copy.fingerprint == store.fingerprint


def test_the_fingerprint_is_of_these_shards_labels_and_not_of_packs(tmp_path: Path, index: Index, labels: Path) -> None:
    write_labels(tmp_path / "other_packs", index, [[0], [1, 2, 3]])
    same = LabelStore.open(tmp_path / "other_packs", index).fingerprint
    assert same == LabelStore.open(labels, index).fingerprint
    write_labels(tmp_path / "other_labels", index, [[0, 1, 2, 3]], lambda row: (true_labels(index, row) + 1) % CLUSTERS)
    assert same != LabelStore.open(tmp_path / "other_labels", index).fingerprint
    part = make_index(tmp_path / "part", {2: 7, 3: 3})
    assert same != LabelStore.open(labels, part).fingerprint


def test_reading_a_row_opens_no_file_and_copies_no_label(index: Index, labels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = LabelStore.open(labels, index)
    opened: list[object] = []
    monkeypatch.setattr(labels_module, "Pack", lambda *arguments, **_: opened.append(arguments))
    for name in ("load", "memmap", "fromfile", "frombuffer"):
        monkeypatch.setattr(np, name, lambda *arguments, **_: opened.append(arguments))
    monkeypatch.setattr(Path, "open", lambda *arguments, **_: opened.append(arguments))
    whole = [store.read(row) for row in range(len(index))]
    for row in range(len(index)):
        part = store.read(row, 0, 1)
        assert np.shares_memory(part, whole[row][:1]) and not part.flags.owndata and not part.flags.writeable
    assert opened == []


def test_each_pack_is_mapped_once_and_only_when_a_row_of_it_is_read(
    index: Index, labels: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, mapped = pickle.loads(pickle.dumps(LabelStore.open(labels, index))), []
    real = Pack.__init__

    def record(self: Pack, folder: Path, record: dict, num_classes: int) -> None:
        mapped.append(record["name"])
        real(self, folder, record, num_classes)

    monkeypatch.setattr(Pack, "__init__", record)
    for row, expected in ((0, 1), (5, 1), (3, 1), (6, 2), (15, 2), (0, 2)):
        np.testing.assert_array_equal(store.read(row), true_labels(index, row))
        assert mapped == ["pack-00000", "pack-00001"][:expected]


def test_labels_without_their_finished_mark_are_refused(index: Index, labels: Path) -> None:
    (labels / "meta.json").unlink()
    with pytest.raises(ValueError, match=r"written last as its finished mark.*run openwavlm assign-labels"):
        LabelStore.open(labels, index)


def test_a_codebook_folder_given_as_labels_is_refused(index: Index, tmp_path: Path) -> None:
    Codebook(torch.zeros(2, 2)).save(tmp_path / "codebook")
    with pytest.raises(ValueError, match=r"must hold labels, but its meta\.json names codebook"):
        LabelStore.open(tmp_path / "codebook", index)


def test_labels_of_a_newer_format_are_refused_by_name(index: Index, labels: Path) -> None:
    change_meta(labels, format_version=4)
    with pytest.raises(ValueError, match=r"labels of format_version 4.*reads up to 3: update OpenWavLM"):
        LabelStore.open(labels, index)


@pytest.mark.parametrize(("name", "value"), [("hop_samples", 160), ("receptive_field_samples", 401), ("label_rate_hz", 100.0)])
def test_labels_on_another_frame_grid_are_refused(index: Index, labels: Path, name: str, value: float) -> None:
    change_meta(labels, **{name: value})
    with pytest.raises(ValueError, match=f"{name} = (320|400|50), but those in .* have {name} = {value:g}"):
        LabelStore.open(labels, index)


def test_labels_of_another_shard_set_are_refused_with_both_ways_out(tmp_path: Path, labels: Path) -> None:
    other = make_index(tmp_path / "other", {**ROWS, 4: 2}, seed=1)
    with pytest.raises(ValueError, match=r"5 of 5 have none \(for example shards/00000.tar\).*assign-labels.*mode=rebind"):
        LabelStore.open(labels, other)
    grown = make_index(tmp_path / "grown", {**ROWS, 4: 2})
    with pytest.raises(ValueError, match=r"1 of 5 have none \(for example shards/00004.tar\)"):
        LabelStore.open(labels, grown)


def test_a_truncated_pack_is_refused(index: Index, labels: Path) -> None:
    file = labels_file(labels, "pack-00001")
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-2])
    with pytest.raises(ValueError, match=f"must have {size} bytes, but has {size - 2}"):
        LabelStore.open(labels, index)
    file.unlink()
    with pytest.raises(ValueError, match="is absent"):
        LabelStore.open(labels, index)


def test_a_codebook_of_another_size_is_refused(index: Index, labels: Path) -> None:
    np.save(labels / "codebook.npy", np.zeros((CLUSTERS + 1, 3), np.float32))
    with pytest.raises(ValueError, match=r"must have the hash .* and the 10 clusters that meta\.json names, but has .* and 11"):
        LabelStore.open(labels, index)


def test_another_codebook_of_the_same_size_is_refused(index: Index, labels: Path) -> None:
    np.save(labels / "codebook.npy", np.zeros((CLUSTERS, 3), np.float32))
    with pytest.raises(ValueError, match="must have the hash"):
        LabelStore.open(labels, index)


def test_a_row_with_another_number_of_frames_is_refused(index: Index, labels: Path) -> None:
    file = rows_file(labels, "pack-00001")
    table = np.load(file)
    table["frames"][2] += 1
    np.save(file, table)
    expected = len(true_labels(index, 8))
    with pytest.raises(ValueError, match=rf"row 8 \(shards/00002.tar\) on there are {expected + 1} frames instead of {expected}"):
        LabelStore.open(labels, index)


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize("row", [0, 2, 5])
def test_a_row_with_a_frame_more_or_less_is_refused_though_the_rows_behind_it_moved_too(
    index: Index, labels: Path, row: int, change: int
) -> None:
    later = range(row + 1, len(np.load(rows_file(labels, "pack-00001"))))  # rows from 6 on, the first of the pack
    move(labels, "pack-00001", frames={row: change}, offset=dict.fromkeys(later, change))
    expected = len(true_labels(index, 6 + row))
    with pytest.raises(ValueError, match=rf"row {6 + row} .* {expected + change} frames instead of {expected} in"):
        LabelStore.open(labels, index)


def move(labels: Path, pack: str, **columns: dict[int, int]) -> None:
    """Adds to entries of a pack's table of rows."""
    table = np.load(rows_file(labels, pack))
    for name, changes in columns.items():
        for row, change in changes.items():
            table[name][row] += np.int64(change)
    np.save(rows_file(labels, pack), table)


def test_a_border_between_two_rows_that_moved_is_refused(index: Index, labels: Path) -> None:
    # Rows 6 to 12 are shard 2, the first of the second pack; as many labels as before, but one of row 8 is row 7's now.
    move(labels, "pack-00001", frames={1: 1, 2: -1}, offset={2: 1})
    expected = len(true_labels(index, 7))
    with pytest.raises(ValueError, match=rf"row 7 \(shards/00002.tar\) on there are {expected + 1} frames instead of {expected}"):
        LabelStore.open(labels, index)


@pytest.mark.parametrize(("place", "change"), [(0, 1), (2, -1), (6, 5), (7, 1), (9, -3)])
def test_labels_that_do_not_begin_where_those_of_the_row_before_end_are_refused(
    index: Index, labels: Path, place: int, change: int
) -> None:
    lengths = [len(true_labels(index, row)) for row in range(6, 16)]
    move(labels, "pack-00001", offset={place: change})
    begins = sum(lengths[:place])
    with pytest.raises(
        ValueError,
        match=rf"from row {6 + place} \(.*\) on there are labels from {(begins + change) % 2**64} on instead of {begins} in",
    ):
        LabelStore.open(labels, index)
    part = make_index(labels.parent / "part", {2: 7} if place < 7 else {3: 3})
    with pytest.raises(ValueError, match="labels from"):
        LabelStore.open(labels, part)


@pytest.mark.parametrize("column", ["key", "pcm"])
def test_a_table_of_other_audio_is_refused_by_key_and_by_content(index: Index, labels: Path, column: str) -> None:
    move(labels, "pack-00001", **{column: {4: 1}})
    sentence = r"pack-00001\.rows\.npy must list the audio of .*, by key and content, but .* from row 10 \(shards/00002\.tar\)"
    with pytest.raises(ValueError, match=sentence):
        LabelStore.open(labels, index)


def test_a_row_whose_labels_were_taken_away_is_refused(index: Index, labels: Path) -> None:
    move(labels, "pack-00001", frames={3: -len(true_labels(index, 9))})  # as if its audio could not be read
    with pytest.raises(ValueError, match=r"from row 10 \(.*\) on there are labels from"):
        LabelStore.open(labels, index)


def test_the_table_and_the_meta_of_a_pack_are_those_of_its_rows(tmp_path: Path, index: Index) -> None:
    meta = write_labels(tmp_path / "labels", index, [[0, 1], [2, 3]], lambda row: None if row == 2 else true_labels(index, row))
    found = [np.zeros(0, dtype=int) if row == 2 else true_labels(index, row) for row in range(16)]
    for pack, first, last, shards in ((0, 0, 6, {0: 5, 5: 6}), (1, 6, 16, {6: 13, 13: 16})):
        name, frames = f"pack-{pack:05d}", [len(labels) for labels in found[first:last]]
        table, record = np.load(rows_file(tmp_path / "labels", name)), meta["packs"][pack]
        assert table["offset"].tolist() == [sum(frames[:row]) for row in range(len(frames))]
        assert table["frames"].tolist() == frames
        assert table["key"].tolist() == index.key[first:last].tolist() and table["pcm"].tolist() == index.pcm[first:last].tolist()
        assert (record["name"], record["rows"], record["frames"]) == (name, last - first, sum(frames))
        content = np.concatenate(found[first:last]).astype("<u2").tobytes()
        assert labels_file(tmp_path / "labels", name).read_bytes() == content and record["labels_bytes"] == len(content)
        assert record["labels_checksum"] == hashlib.blake2b(content, digest_size=16).hexdigest()
        rows_content = rows_file(tmp_path / "labels", name).read_bytes()
        assert record["rows_checksum"] == hashlib.blake2b(rows_content, digest_size=16).hexdigest()
        assert record["rows_bytes"] == len(rows_content)
        for shard, (begin, end) in zip(record["shards"], shards.items(), strict=True):
            rows = found[begin:end]
            text = b"".join(len(labels).to_bytes(4, "little") + labels.astype("<u2").tobytes() for labels in rows)
            assert (shard["rows"], shard["frames"]) == (len(rows), sum(map(len, rows)))
            assert shard["checksum"] == hashlib.blake2b(text, digest_size=16).hexdigest()
    assert (meta["shards"], meta["rows"], meta["frames"], meta["unreadable_rows"]) == (4, 16, sum(map(len, found)), 1)
    assert meta["label_counts"] == np.bincount(np.concatenate(found), minlength=CLUSTERS).tolist()
    store = LabelStore.open(tmp_path / "labels", index)
    checksums = {shard["identity"]: shard["checksum"] for pack in meta["packs"] for shard in pack["shards"]}
    entries = sorted(f"{shard.identity} {checksums[shard.identity]}" for shard in index.shards)
    text = "\n".join([meta["codebook_hash"], *entries]).encode()
    assert store.fingerprint == hashlib.blake2b(text, digest_size=16).hexdigest()


def test_a_border_that_moved_between_rows_changes_the_fingerprint(tmp_path: Path) -> None:
    # The same labels one after another, shared out over two rows in another way.
    found = []
    for name, lengths in (("one", (3, 2)), ("other", (2, 3))):
        columns = {column: np.zeros(2, dtype) for column, dtype in COLUMNS.items()}
        columns |= {"num_samples": np.array([320 * length + 80 for length in lengths]), "key": np.arange(2, dtype=np.uint64)}
        shards = [ShardInfo("a.tar", 2, 0, "", "the same identity")]
        both = write_index(tmp_path / name, columns=columns, tables={table: [""] for table in TABLES}, shards=shards)
        borders = {0: slice(0, lengths[0]), 1: slice(lengths[0], 5)}
        write_labels(tmp_path / f"{name}-labels", both, [[0]], lambda row, borders=borders: np.arange(5)[borders[row]])
        found.append(LabelStore.open(tmp_path / f"{name}-labels", both).fingerprint)
    assert found[0] != found[1]


@pytest.mark.parametrize("place", [0, 100_000, 199_999])
def test_a_label_beyond_the_codebook_is_found_at_both_ends_and_in_the_middle_of_a_large_pack(tmp_path: Path, place: int) -> None:
    index = make_index(tmp_path / "shards", {0: 4}, num_samples=320 * 50_000 + 80)

    def label_row(row: int) -> np.ndarray:
        labels = np.zeros(50_000, dtype=int)
        if place // 50_000 == row:
            labels[place % 50_000] = CLUSTERS - 1
        return labels

    write_labels(tmp_path / "labels", index, [[0]], label_row)
    LabelStore.open(tmp_path / "labels", index)
    values = np.fromfile(labels_file(tmp_path / "labels", "pack-00000"), dtype="<u2")
    values[place] = CLUSTERS
    values.tofile(labels_file(tmp_path / "labels", "pack-00000"))
    with pytest.raises(ValueError, match="has the label 10"):
        LabelStore.open(tmp_path / "labels", index)


def test_a_label_beyond_the_codebook_in_a_later_pack_is_found(index: Index, labels: Path) -> None:
    values = np.fromfile(labels_file(labels, "pack-00001"), dtype="<u2")
    values[0] = CLUSTERS
    values.tofile(labels_file(labels, "pack-00001"))
    with pytest.raises(ValueError, match=r"pack-00001\.u16 has the label 10"):
        LabelStore.open(labels, index)


def test_a_label_beyond_the_codebook_is_refused(index: Index, labels: Path) -> None:
    file = labels_file(labels, "pack-00000")
    values = np.fromfile(file, dtype="<u2")
    values[-1] = CLUSTERS
    values.tofile(file)
    with pytest.raises(ValueError, match=r"below the 10 clusters.*pack-00000\.u16 has the label 10"):
        LabelStore.open(labels, index)


def test_a_failed_pack_leaves_no_file_under_its_name(tmp_path: Path, index: Index) -> None:
    def fail_late(row: int) -> np.ndarray:
        if row == 3:
            raise ValueError("stop")
        return true_labels(index, row)

    with pytest.raises(ValueError, match="stop"):
        write_labels(tmp_path / "labels", index, [[0, 1]], fail_late)
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["codebook.npy"]


@pytest.mark.parametrize("change", [-1, 1])
def test_a_row_with_too_many_or_too_few_labels_is_not_written(tmp_path: Path, index: Index, change: int) -> None:
    def label_row(row: int) -> np.ndarray:
        labels = true_labels(index, row)
        return labels if row != 3 else np.zeros(len(labels) + change, dtype=int)

    with pytest.raises(AssertionError):
        write_labels(tmp_path / "labels", index, [[0, 1, 2, 3]], label_row)


def test_a_labelling_names_its_shards_by_identity_alone(index: Index, labels: Path) -> None:
    text = (labels / "meta.json").read_text()
    assert str(index.path) not in text
    assert "tar" not in text
    assert set(LabelPacks.open(labels).place) == {shard.identity for shard in index.shards}


# --- shards of an unfinished pack ---------------------------------------------------------------------------------------


def test_a_finished_shard_of_a_pack_reads_back_by_row_and_is_of_its_audio_and_codebook(tmp_path: Path, index: Index) -> None:
    parts = [ShardParts(tmp_path / name, index, "book", CLUSTERS) for name in ("first", "second")]
    unreadable = int(index.first_row[2]) + 1

    def computer(numbers: Sequence[int]) -> Callable[[int], list[np.ndarray | None]]:
        # The second labelling counts down.
        def labels(row: int) -> list[np.ndarray | None]:
            found = [true_labels(index, row), CLUSTERS - 1 - true_labels(index, row)]
            return [None if row == unreadable else found[number] for number in numbers]

        return labels

    write_parts(parts, [2], computer, ["a GPU", None])
    write_parts(parts, [2, 0], computer, ["another GPU", None])
    rows = [*range(int(index.first_row[2]), int(index.first_row[3])), *range(int(index.first_row[1]))]
    for row in rows:
        first, second = (part.labels(row) for part in parts)
        if row == unreadable:
            assert first is None and second is None
        else:
            assert np.array_equal(first, true_labels(index, row)) and np.array_equal(second, CLUSTERS - 1 - first)
    assert parts[0].done(2) and not parts[0].done(1)
    assert (parts[0].computed_on(2), parts[0].computed_on(0), parts[1].computed_on(2)) == ("a GPU", "another GPU", None)
    assert not ShardParts(tmp_path / "first", index, "other book", CLUSTERS).done(2)
    other = make_index(tmp_path / "other", ROWS, seed=1)
    assert not ShardParts(tmp_path / "first", other, "book", CLUSTERS).done(2)
    labels_file(parts[0].folder, parts[0].name(2)).write_bytes(b"short")
    assert not parts[0].done(2) and parts[0].done(0)
    parts[1].remove([2])
    assert not parts[1].done(2) and parts[1].done(0)
    assert not list(parts[1].folder.glob(f"{parts[1].name(2)}*"))


# --- meta.json ----------------------------------------------------------------------------------------------------------


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Where each value of a JSON object stands."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else []
    return [path, *(place for key, entry in inner for place in places(entry, (*path, key)))]


def put(meta: object, path: tuple, value: object) -> object:
    """The object with another value at a place; `...` takes it away."""
    changed = json.loads(json.dumps(meta))
    parent = changed
    for key in path[:-1]:
        parent = parent[key]
    if not path:
        return value
    if value is ...:
        del parent[path[-1]]
    else:
        parent[path[-1]] = value
    return changed


@pytest.mark.parametrize("version", [1, 3])
@pytest.mark.parametrize("value", [..., None, "x", -1, 1, 2**70, 1e999, True, [], {}, [[]], "../../etc"])
def test_a_field_that_is_absent_or_of_another_kind_is_refused_with_the_files_name(
    index: Index, labels: Path, version: int, value: object
) -> None:
    change_meta(labels, codebook_fitted={"split_seed": 0, "validation_share": 0.02, "indexes": ["a"]})
    meta = json.loads((labels / "meta.json").read_text())
    del meta["seal"]
    meta["format_version"] = version
    if version == 3:
        meta = sealed(meta)
    (labels / "meta.json").write_text(json.dumps(meta))
    whole = LabelStore.open(labels, index)
    refused, tried = 0, 0
    for path in places(meta):
        changed = put(meta, path, value) if path or value is not ... else "nothing"
        if json.dumps(changed) == json.dumps(meta) or (path[:1] == ("seal",) and version == 1):
            continue
        (labels / "meta.json").write_text(json.dumps(changed))
        tried += 1
        try:
            found = LabelStore.open(labels, index)
        except ValueError as error:
            assert str(labels) in str(error) and "\n" not in str(error), (path, error)
            refused += 1
        else:  # what an older format cannot see decides nothing here
            assert version == 1 and path[0] in ("codebook_fitted", "features", "dtype", "kind", "centroids", "packs"), path
            assert (found.fingerprint, found.num_classes) == (whole.fingerprint, whole.num_classes)
    assert tried > 60 and refused == tried if version == 3 else refused > 50


@pytest.mark.parametrize("text", ["", "[]", "7", '{"format_version":', "[" * 100_000, '{"format_version": 1e999}', "\x00\ufffd"])
def test_a_meta_that_is_no_object_is_refused(index: Index, labels: Path, text: str) -> None:
    (labels / "meta.json").write_bytes(text.encode("utf-16-be" if text.startswith("\x00") else "utf-8"))
    with pytest.raises(ValueError, match=r"labels/meta\.json( is damaged| must hold a JSON object|: format_version must)"):
        LabelStore.open(labels, index)


def test_damaged_counts_are_refused_though_their_sum_holds(index: Index, labels: Path) -> None:
    meta = json.loads((labels / "meta.json").read_text())
    counts = meta["label_counts"]
    meta = meta | {"label_counts": [counts[0] + 1, counts[1] - 1, *counts[2:]]}
    (labels / "meta.json").write_text(json.dumps(sealed(meta)))
    with pytest.raises(ValueError, match=r"labels/meta\.json must count the labels of its packs, but has other label_counts"):
        LabelPacks.open(labels).check()
    with pytest.raises(ValueError, match=r"labels/meta\.json must count the labels of its packs, but has other label_counts"):
        LabelStore.open(labels, index)


def older(labels: Path) -> bytes:
    """Makes a labelling one of format 1; returns what it was."""
    before = (labels / "meta.json").read_bytes()
    meta = json.loads(before) | {"format_version": 1}
    del meta["seal"]
    (labels / "meta.json").write_text(json.dumps(meta))
    return before


def test_a_labelling_of_format_1_is_read_and_upgraded_in_place(index: Index, labels: Path) -> None:
    before, expected = {path.name: path.read_bytes() for path in labels.iterdir()}, LabelStore.open(labels, index).fingerprint
    older(labels)
    assert LabelStore.open(labels, index).fingerprint == expected
    assert upgrade_labels(labels) and not upgrade_labels(labels)
    assert {path.name: path.read_bytes() for path in labels.iterdir() if path.name != ".lock"} == before
    assert upgrade_labels(labels, lambda meta: meta["features"].update(more=1))
    assert not upgrade_labels(labels, lambda meta: meta["features"].update(more=1))
    assert LabelPacks.open(labels).meta["features"] == {"name": "test", "more": 1}


def test_a_damaged_labelling_is_not_upgraded(labels: Path) -> None:
    older(labels)
    meta, file = (labels / "meta.json").read_bytes(), labels_file(labels, "pack-00001")
    content = file.read_bytes()
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(ValueError, match=r"pack-00001\.u16 must hold the labels that meta\.json names"):
        upgrade_labels(labels)
    assert (labels / "meta.json").read_bytes() == meta


def test_a_header_that_numpy_would_evaluate_is_compared_and_not_evaluated(index: Index, labels: Path) -> None:
    file = rows_file(labels, "pack-00000")
    content = file.read_bytes()
    begin = content.index(b"{'descr'")
    for header in (b"(" * 100, b"{'descr': '|O', 'shape': (6,)}", b"\xff\xfe", b"{'descr': [", content[begin : begin + 40]):
        file.write_bytes(content[:begin] + header.ljust(len(content[begin:]) - 6 * 28) + content[-6 * 28 :])
        assert file.stat().st_size == len(content)
        with pytest.raises(ValueError, match=rf"{file} must be a table of 6 rows"):
            LabelStore.open(labels, index)
