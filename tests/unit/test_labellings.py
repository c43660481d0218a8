"""Labellings of audio: what is done again, what is refused, what is carried over, and what a verification counts."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.audio.mfcc import mfcc_features
from openwavlm.labels import pack_tasks
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.label_packs import labels_file, rows_file
from openwavlm.labels.labelling import LabelPacks
from openwavlm.labels.pack_tasks import PackTarget, PackTask, label_pack
from openwavlm.labels.rebind import carrier, check_carried
from openwavlm.labels.store import LabelStore
from openwavlm.labels.unfinished import ShardParts, write_parts
from openwavlm.labels.verify import LabelVerification, verify_labels
from openwavlm.runtime.sealed import sealed
from openwavlm.shards.index import Index
from synthetic import make_corpus, make_shard_set

CLUSTERS = 10


class Place:
    """A folder with a shard set of 16 rows in four shards, two codebooks, the labels of both, and the corpus in other shards."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __getitem__(self, name: str) -> Path:
        return self.folder / name

    def index(self, name: str = "shards") -> Index:
        return Index.open(self[name])


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("labellings")
    corpus = make_corpus(folder / "corpus", speakers=4, utterances=4, seconds=(0.6, 0.9))
    for name, rows, seed in (("shards", 4, 0), ("resharded", 6, 3)):
        make_shard_set(folder / f"{name}-work", corpus=corpus, utterances_per_shard=rows, seed=seed).rename(folder / name)
    for name, seed in (("first", 0), ("second", 1)):
        settings = {"clusters": CLUSTERS, "engine": "minibatch", "min_frames_per_cluster": 5, "seed": seed}
        fit_codebook([folder / "shards"], folder / f"codebook-{name}", **settings)
        assign_labels(folder / "shards", folder / f"codebook-{name}", folder / f"labels-{name}", packs=2)
    return Place(folder)


@pytest.fixture
def copy(place: Place, tmp_path: Path) -> Path:
    return Path(shutil.copytree(place["labels-first"], tmp_path / "labels"))


def all_labels(place: Place, labels: str = "labels-first") -> list[np.ndarray]:
    store = LabelStore.open(place[labels], place.index())
    return [store.read(row) for row in range(16)]


def change(labels: Path, *positions: int) -> None:
    """Moves labels of the first pack by one."""
    file = labels_file(labels, "pack-00000")
    values = np.fromfile(file, dtype="<u2")
    values[list(positions)] = (values[list(positions)] + 1) % CLUSTERS
    values.tofile(file)


# --- verifying ----------------------------------------------------------------------------------------------------------


def test_a_verification_counts_rows_and_frames_that_differ(place, copy):
    lengths = [len(labels) for labels in all_labels(place)]
    change(copy, 0, 3, lengths[0] - 1, sum(lengths[:5]))  # three frames of row 0 and one of row 5
    found = verify_labels(copy, place.index(), share=1.0, checksums=False)
    assert (found.rows, found.all_rows, found.frames) == (16, 16, sum(lengths))
    assert (found.differing_rows, found.differing_frames, found.damaged_files) == ([0, 5], 4, [])
    assert not found.passed
    for tolerance, passed in ((4 / sum(lengths), True), (3.99 / sum(lengths), False)):
        assert verify_labels(copy, place.index(), share=1.0, checksums=False, tolerance=tolerance).passed is passed
    assert verify_labels(place["labels-first"], place.index(), share=1.0).passed


def test_a_verdict_depends_on_frames_and_on_damage():
    assert LabelVerification(10, 10, 1000, [3], 5, [], tolerance=0.005).passed
    assert not LabelVerification(10, 10, 1000, [3], 6, [], tolerance=0.005).passed
    assert not LabelVerification(10, 10, 1000, [], 0, [Path("x")], tolerance=0.5).passed
    assert LabelVerification(10, 10, 0, [], 0, []).passed


@pytest.mark.parametrize(("share", "min_rows", "rows"), [(0.5, 0, 8), (0.16, 0, 3), (0.01, 5, 5), (0.5, 20, 16), (0.0, 0, 0)])
def test_the_sample_is_the_larger_one_of_its_share_and_of_its_least_number(place, share, min_rows, rows):
    found = verify_labels(place["labels-first"], place.index(), share=share, min_rows=min_rows, checksums=False) if rows else None
    assert found is None or (found.rows, found.differing_frames) == (rows, 0)


def test_the_sample_is_chosen_by_audio_and_seed(place, tmp_path):
    # All labels are wrong, so that the rows that differ are those of the sample.
    chosen = {}
    for name in ("shards", "resharded"):
        labels, index = tmp_path / name, place.index(name)
        assign_labels(place[name], place["codebook-first"], labels, packs=1)
        change(labels, *range(int(np.sum(1 + (index.num_samples[:].astype(int) - 400) // 320))))
        for seed in (0, 1):
            found = verify_labels(labels, index, share=0.5, min_rows=1, seed=seed, checksums=False)
            chosen[name, seed] = {int(index.pcm[row]) for row in found.differing_rows}
            assert found.rows == len(chosen[name, seed]) == 8
    assert chosen["shards", 0] == chosen["resharded", 0] != chosen["shards", 1] == chosen["resharded", 1]


@pytest.mark.parametrize("file", [labels_file, rows_file])
def test_a_damaged_file_is_named(place, copy, file):
    path = file(copy, "pack-00001")
    content = bytearray(path.read_bytes())
    content[-20] ^= 1  # of the table: in a key
    path.write_bytes(content)
    if file is rows_file:
        with pytest.raises(
            ValueError, match=f"{path} must list the audio of .*shards, by key and content, but lists other audio"
        ):
            verify_labels(copy, place.index(), share=0.1, min_rows=1)
    else:
        assert verify_labels(copy, place.index(), share=0.1, min_rows=1).damaged_files == [path]


def test_labels_of_another_codebook_in_one_pack_are_found(place, copy):
    shutil.copy(labels_file(place["labels-second"], "pack-00001"), labels_file(copy, "pack-00001"))
    found = verify_labels(copy, place.index(), share=1.0)
    first, second = (np.concatenate(all_labels(place, name)[8:]) for name in ("labels-first", "labels-second"))
    assert found.damaged_files == [labels_file(copy, "pack-00001")]
    assert found.differing_frames == np.count_nonzero(first != second) > 0 and min(found.differing_rows) >= 8


def test_rows_without_labels_or_without_audio_differ_in_all_their_frames(place, tmp_path):
    shards = Path(shutil.copytree(place["shards"], tmp_path / "shards"))
    index, lengths = Index.open(shards), [len(labels) for labels in all_labels(place)]
    with (shards / index.shards[0].name).open("r+b") as file:
        file.seek(int(index.offset[2]) + 100)
        file.write(b"\x55" * (int(index.nbytes[2]) - 100))
    labels = Path(shutil.copytree(place["labels-first"], tmp_path / "labels"))
    without = verify_labels(labels, index, share=1.0)
    assert (without.differing_rows, without.differing_frames, without.frames) == ([2], lengths[2], sum(lengths) - lengths[2])
    assign_labels(shards, place["codebook-first"], tmp_path / "gap", max_skip_rate=0.1)
    found = verify_labels(tmp_path / "gap", place.index(), share=1.0)
    assert (found.differing_rows, found.differing_frames, found.frames) == ([2], lengths[2], sum(lengths))


# --- making -------------------------------------------------------------------------------------------------------------


def test_a_labelling_says_what_it_holds(place):
    labels = all_labels(place)
    counts = np.bincount(np.concatenate(labels), minlength=CLUSTERS)
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum())
    stats = json.loads((place["labels-first"] / "stats.json").read_text())
    assert stats == {
        "command": "assign_labels",
        "num_classes": CLUSTERS,
        "codebook_hash": Codebook.load(place["codebook-first"]).hash,
        "shards": 4,
        "rows": 16,
        "unreadable_rows": 0,
        "frames": counts.sum(),
        "packs": 2,
        "hours": round(counts.sum() / 50 / 3600, 4),
        "used_clusters": len(shares),
        "perplexity": pytest.approx(np.exp(entropy)),
        "unigram_entropy_nats": pytest.approx(entropy),
        "unigram_accuracy": pytest.approx(shares.max()),
    }


def test_a_grown_labelling_counts_old_and_new_labels(place, tmp_path):
    for name in ("shards", "resharded"):
        assign_labels(place[name], place["codebook-first"], tmp_path / f"labels-{name}", packs=1)
    part = tmp_path / "shards"
    shutil.copytree(place["shards"], part)
    assign_labels(part, place["codebook-first"], tmp_path / "labels", packs=1)
    before = json.loads((tmp_path / "labels" / "meta.json").read_text())
    assign_labels(place["resharded"], place["codebook-first"], tmp_path / "labels", packs=2)
    meta = json.loads((tmp_path / "labels" / "meta.json").read_text())
    # Packs are read by their number: those that were there keep theirs.
    assert [pack["name"] for pack in meta["packs"]] == ["pack-00000", "pack-00001", "pack-00002"]
    assert meta["packs"][:1] == before["packs"]
    for name in ("shards", "resharded"):
        index = place.index(name)
        store, alone = (LabelStore.open(path, index) for path in (tmp_path / "labels", tmp_path / f"labels-{name}"))
        assert all(np.array_equal(store.read(row), alone.read(row)) for row in range(16))
    expected = 2 * np.bincount(np.concatenate(all_labels(place)), minlength=CLUSTERS)
    assert meta["label_counts"] == expected.tolist() and (meta["rows"], len(meta["packs"])) == (32, 3)


def test_another_codebook_of_the_same_size_grows_no_labelling_and_carries_none_over(place, copy, tmp_path):
    with pytest.raises(ValueError, match=r"one labelling has one codebook, but .* name another output, or grow it with its own"):
        assign_labels(place["resharded"], place["codebook-second"], copy)
    with pytest.raises(ValueError, match="labels can be carried over only from the same codebook"):
        assign_labels(place["resharded"], place["codebook-second"], tmp_path / "new", carry_from=place["labels-first"])


def test_labels_are_not_written_into_a_shard_set(place, tmp_path):
    shards = Path(shutil.copytree(place["shards"], tmp_path / "shards"))
    with pytest.raises(ValueError, match=r"labels have a folder of their own, but .* holds shards: name another output"):
        assign_labels(shards, place["codebook-first"], shards)


def test_a_finished_labelling_keeps_no_file_that_its_meta_does_not_name(place, copy):
    before = {path.name for path in copy.iterdir()}
    for name in ("pack-00007.u16", "pack-00007.rows.npy", "pack-00001.u16.12.tmp", "meta.json.12.tmp", "notes.tmp"):
        (copy / name).write_bytes(b"1")
    (copy / "tasks" / "shards").mkdir(parents=True)
    (copy / "tasks" / "pack-00000.json").write_text("{}")
    (copy / "tasks" / "shards" / "shard-1.json").write_text("{}")
    assign_labels(place["shards"], place["codebook-first"], copy)
    assert {path.name for path in copy.iterdir()} == before | {"notes.tmp"}, "what another program wrote stays"


def test_a_call_with_nothing_to_do_keeps_the_unfinished_packs_and_shards_of_another_one(place, copy, monkeypatch):
    write, written = pack_tasks.write_packs, []

    def killed(folders, pack, *rest):
        written.append(pack)
        if len(written) > 1:
            raise KeyboardInterrupt
        return write(folders, pack, *rest)

    grown = place["resharded"]
    monkeypatch.setattr(pack_tasks, "write_packs", killed)
    with pytest.raises(KeyboardInterrupt):
        assign_labels(grown, place["codebook-first"], copy, packs=2)
    monkeypatch.undo()

    def unfinished() -> dict[str, int]:
        files = [*copy.glob("pack-*"), *(copy / "tasks").rglob("*.*")]
        return {path.name: path.stat().st_mtime_ns for path in files}

    before = unfinished()
    assert any(name.startswith("shard-") for name in before) and len(list((copy / "tasks").glob("pack-*.json"))) == 1
    assign_labels(place["shards"], place["codebook-first"], copy)
    assert unfinished() == before
    assign_labels(grown, place["codebook-first"], copy, packs=2)
    assert not (copy / "tasks").exists() and LabelPacks.open(copy).missing(Index.open(grown)) == []


def test_labels_are_not_carried_from_a_folder_into_itself(place, copy):
    with pytest.raises(ValueError, match="labels are carried from one folder into another, but carry_from and output are both"):
        assign_labels(place["resharded"], place["codebook-first"], copy, carry_from=copy.parent / "." / copy.name)


def test_a_pack_is_done_only_for_its_own_codebook_shards_and_bytes(place, tmp_path):
    index, books = place.index(), [Codebook.load(place[f"codebook-{name}"]) for name in ("first", "second")]
    target = PackTarget.of(tmp_path, books[0], "pack-00000", index, (0, 1))
    assert target.key == PackTarget.of(tmp_path, books[0], "pack-00000", index, [0, 1]).key
    others = [
        PackTarget.of(tmp_path, books[1], "pack-00000", index, (0, 1)),
        PackTarget.of(tmp_path, books[0], "pack-00000", index, (0, 2)),
        PackTarget.of(tmp_path, books[0], "pack-00000", index, (1, 0)),
        PackTarget.of(tmp_path, books[0], "pack-00000", place.index("resharded"), (0, 1)),
    ]
    # Equal centroids of other features make other labels; the order in which features are named is none of theirs.
    other_features = dataclasses.replace(books[0], features={**books[0].features, "hop_ms": 5})
    others.append(PackTarget.of(tmp_path, other_features, "pack-00000", index, (0, 1)))
    turned = dataclasses.replace(books[0], features=dict(reversed(books[0].features.items())))
    assert PackTarget.of(tmp_path, turned, "pack-00000", index, (0, 1)).key == target.key
    labels_file(tmp_path, "pack-00000").write_bytes(b"1234")
    rows_file(tmp_path, "pack-00000").write_bytes(b"1" * 99)
    target.done_file.parent.mkdir()
    record = {
        "name": "pack-00000", "rows": 1, "frames": 2, "unreadable_rows": 0, "labels_bytes": 4, "labels_checksum": "0" * 32,
        "rows_bytes": 99, "rows_checksum": "1" * 32, "shards": [{"identity": "a", "rows": 1, "frames": 2, "checksum": "2" * 32}],
    }  # fmt: skip
    whole = {"task": target.key, "record": record, "label_counts": [0] * CLUSTERS}

    def write(done: object) -> None:
        target.done_file.write_text(json.dumps(done))

    for changes, done in (
        ({}, True),
        ({"labels_bytes": 6, "frames": 3, "shards": [{**record["shards"][0], "frames": 3}]}, False),
        ({"rows_bytes": 98}, False),
        ({"labels_bytes": 6}, False),
        ({"name": "pack-00001"}, False),
        ({"rows_checksum": None}, False),
    ):
        write({**whole, "record": record | changes})
        assert (target.done() is not None) is done
    for damaged in ([], {}, {"task": target.key}, {**whole, "label_counts": [0]}, {**whole, "record": []}):
        write(damaged)
        assert target.done() is None
    write(whole)
    assert [other.done() for other in others] == [None] * 5
    task = PackTask(place["shards"], (0, 1), (target, others[0]), None, None, "cpu", "assign")
    assert task.undone().targets == (others[0],)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_pack_names_the_gpu_of_its_layer_features_and_those_of_labels_that_it_took_over(place, tmp_path, monkeypatch, device):
    index, book = place.index(), Codebook.load(place["codebook-first"])
    of_layer = dataclasses.replace(book, features={**book.features, "name": "layer", "layer": 1})
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU B")
    monkeypatch.setattr(  # the teacher stands aside: its features are those of the codebook
        pack_tasks,
        "assign_in_chunks",
        lambda books, waveform, teacher, device: [one.assign(mfcc_features(waveform)) for one in books],
    )

    def written(carry_from: Path | None, *books: Codebook) -> list[str | None]:
        folders = [tmp_path / f"{len(list(tmp_path.iterdir()))}-{number}" for number in range(len(books))]
        targets = tuple(PackTarget.of(folder, one, "pack-00000", index, (0,)) for folder, one in zip(folders, books, strict=True))
        label_pack(PackTask(place["shards"], (0,), targets, carry_from, None, device, "assign"))
        assert all(not list((folder / "tasks").rglob("shard-*")) for folder in folders)
        return [target.done()["record"].get("computed_on") for target in targets]

    own = "GPU B" if device == "cuda" else None
    assert written(None, book, of_layer, book) == [None, own, None], "MFCC are computed on the CPU"
    older = tmp_path / "older"
    shutil.copytree(place["labels-first"], older)
    meta = json.loads((older / "meta.json").read_text())
    for names, expected in (
        (["GPU C, GPU A", "GPU A"], ["GPU A", own, "GPU C"]),
        (["GPU B"], ["GPU B"]),
        ([], [own]),
    ):
        for number, pack in enumerate(meta["packs"]):
            pack.pop("computed_on", None)
            if number < len(names):
                pack["computed_on"] = names[number]
        meta = sealed(meta)
        (older / "meta.json").write_text(json.dumps(meta))
        assert written(older, of_layer) == [", ".join(name for name in expected if name) or None]


def test_a_killed_pack_goes_on_behind_its_finished_shards_of_the_same_audio_and_codebook(place, tmp_path):
    index = place.index()
    counts = [index.shards[shard].rows for shard in (0, 1)]

    def rows_computed(key: str, *shards: int) -> list[int]:
        asked = []

        def computer(some):
            def labels_of_row(row: int) -> list[np.ndarray]:
                asked.append(row)
                return [np.full(1 + (int(index.num_samples[row]) - 400) // 320, row, dtype=np.uint16)]

            assert list(some) == [0]
            return labels_of_row

        part = ShardParts(tmp_path / "labels", index, key, 16)
        write_parts([part], shards, computer, [None])
        for shard in shards:
            assert all((part.labels(row) == row).all() for row in range(index.first_row[shard], index.first_row[shard + 1]))
        return asked

    first, second = list(range(counts[0])), list(range(counts[0], sum(counts)))
    assert rows_computed("a", 0) == first and rows_computed("a", 0, 1) == second and rows_computed("a", 0, 1) == []
    assert rows_computed("b", 0) == first, "of another codebook"
    file = labels_file(tmp_path / "labels" / "tasks" / "shards", f"shard-{index.shards[1].identity}")
    file.write_bytes(file.read_bytes()[:-2])
    assert rows_computed("a", 0, 1) == first + second
    for damaged in (file, rows_file(file.parent, file.stem), file.with_suffix(".json")):
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
        assert rows_computed("a", 0, 1) == second, f"{damaged} was changed after it was finished"


@pytest.mark.parametrize(("packs", "expected"), [(None, [1, 1, 1, 1]), (3, [2, 1, 1]), (2, [2, 2]), (9, [1, 1, 1, 1])])
def test_new_shards_are_dealt_to_packs_in_order(place, tmp_path, packs, expected):
    assign_labels(place["shards"], place["codebook-first"], tmp_path / "labels", packs=packs)
    meta = json.loads((tmp_path / "labels" / "meta.json").read_text())
    assert [len(pack["shards"]) for pack in meta["packs"]] == expected
    identities = [shard["identity"] for pack in meta["packs"] for shard in pack["shards"]]
    assert identities == [shard.identity for shard in place.index().shards]


@pytest.mark.parametrize(("most", "packs", "expected"), [(4, None, 2), (5, None, 2), (9, None, 4), (4, 4, 4), (1, None, 1)])
def test_a_first_call_takes_half_of_the_packs_and_at_most_all(place, tmp_path, monkeypatch, most, packs, expected):
    monkeypatch.setattr("openwavlm.labels.assign.MAX_PACKS", most)
    meta = assign_labels(place["shards"], place["codebook-first"], tmp_path / "labels", packs=packs)
    assert len(meta["packs"]) == expected


def test_more_packs_than_a_labelling_can_have_are_refused(place, tmp_path, monkeypatch):
    monkeypatch.setattr("openwavlm.labels.assign.MAX_PACKS", 3)
    with pytest.raises(ValueError, match=r"at most 3 packs .* has 0 and 4 more were requested: lower packs"):
        assign_labels(place["shards"], place["codebook-first"], tmp_path / "labels", packs=4)


def test_jobs_of_an_array_write_every_second_pack(place, tmp_path):
    for number, expected in ((1, {1, 3}), (0, {0, 1, 2, 3})):
        meta = assign_labels(
            place["shards"], place["codebook-first"], tmp_path / "labels", packs=4, num_tasks=2, task_index=number
        )
        assert {int(path.stem[5:]) for path in (tmp_path / "labels").glob("pack-*.u16")} == expected
        assert (meta is None) == (number == 1)


def test_packs_with_unreadable_audio_are_done_again_and_the_others_are_not(place, tmp_path):
    shards = Path(shutil.copytree(place["shards"], tmp_path / "shards"))
    index = Index.open(shards)
    with (shards / index.shards[1].name).open("r+b") as file:
        file.seek(int(index.offset[5]) + 100)
        file.write(b"\x55" * (int(index.nbytes[5]) - 100))
    with pytest.raises(ValueError, match="1 of 16"):
        assign_labels(shards, place["codebook-first"], tmp_path / "labels", packs=4)
    assert {path.name for path in (tmp_path / "labels" / "tasks").glob("*.json")} == {f"pack-0000{n}.json" for n in (0, 2, 3)}


# --- carrying over ------------------------------------------------------------------------------------------------------


def test_labels_are_carried_over_by_the_audio_alone(place):
    other, labels = place.index("resharded"), all_labels(place)
    carried = carrier(other, place["labels-first"])
    row_of = {int(pcm): row for row, pcm in enumerate(place.index().pcm)}
    rows = [row_of[int(pcm)] for pcm in other.pcm]
    assert rows != sorted(rows)
    for row, old in enumerate(rows):
        np.testing.assert_array_equal(carried(row), labels[old])
    check_carried(other, [0, 1, 2], place["labels-first"])


def test_audio_that_is_not_there_or_was_unreadable_has_nothing_to_carry(place, tmp_path):
    shards = Path(shutil.copytree(place["shards"], tmp_path / "shards"))
    index = Index.open(shards)
    with (shards / index.shards[0].name).open("r+b") as file:
        file.seek(int(index.offset[2]) + 100)
        file.write(b"\x55" * (int(index.nbytes[2]) - 100))
    assign_labels(shards, place["codebook-first"], tmp_path / "gap", max_skip_rate=0.1)
    carried = carrier(place.index(), tmp_path / "gap")
    assert carried(2) is None and carried(3) is not None
    other = place.index("resharded")
    for changed in (0, 2**64 - 1, int(other.pcm.max()) - 1):
        other.pcm = other.pcm.copy()
        other.pcm[4] = changed
        carried = carrier(other, place["labels-first"])
        assert carried(4) is None and carried(5) is not None
        with pytest.raises(ValueError, match=r"1 of 10 rows .* row 4 in .* have none"):
            check_carried(other, [0, 1], place["labels-first"])


@pytest.mark.parametrize("frames", [-1, 1])
def test_equal_audio_of_another_length_is_refused(place, frames):
    other = place.index("resharded")
    other.num_samples = other.num_samples.astype(np.int64)
    other.num_samples[3] += 320 * frames
    carried = carrier(other, place["labels-first"])
    with pytest.raises(ValueError, match="equal audio must have equally many frames, but row 3"):
        carried(3)
    assert carried(4) is not None
