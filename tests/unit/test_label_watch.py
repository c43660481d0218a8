"""Labels beside a training: the rest is read in the background, and files that change meanwhile are noticed or without effect."""

import os
import pickle
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from openwavlm.labels.label_packs import labels_file, rows_file
from openwavlm.labels.pack import Pack
from openwavlm.labels.store import LabelStore
from openwavlm.training.label_watch import LabelWatch
from synthetic_labels import CLUSTERS, make_index, true_labels, write_labels

ROWS = {0: 5, 1: 2, 2: 7, 3: 3}


class Place:
    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder / "labels", make_index(folder / "shards", ROWS)
        write_labels(self.folder, self.index, [[0, 1], [2, 3]])
        self.stopped: list[str] = []

    def watch(self, *, reads: bool = True, at_once_bytes: int = 0) -> LabelWatch:
        self.store = LabelStore.open(self.folder, self.index, at_once_bytes=at_once_bytes)
        self.left = [shard for shard, checked in enumerate(self.store._checked) if not checked]
        return LabelWatch([self.store], reads=reads, on_damage=self.stopped.append)

    def flip(self, shard: int) -> None:
        """Changes the first label of a shard, in place."""
        rows = range(int(self.index.first_row[2 * (shard // 2)]), int(self.index.first_row[shard]))
        with labels_file(self.folder, f"pack-{shard // 2:05d}").open("r+b") as file:
            file.seek(2 * sum(len(true_labels(self.index, row)) for row in rows))
            (label,) = file.read(1)
            file.seek(-1, 1)
            file.write(bytes([label ^ 1]))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_labelling_above_the_size_is_read_in_part_and_always_in_the_same_part(place: Place) -> None:
    place.watch()
    sampled = [shard for shard in range(4) if shard not in place.left]
    assert [shard // 2 for shard in sampled] == [0, 1], "one of each pack"
    place.watch()
    assert sampled == [shard for shard in range(4) if shard not in place.left]
    size = sum(labels_file(place.folder, f"pack-{pack:05d}").stat().st_size for pack in (0, 1))
    place.watch(at_once_bytes=size - 1)
    assert len(place.left) == 1
    place.watch(at_once_bytes=size)
    assert not place.left


def test_damage_in_the_sample_is_refused_at_once_and_elsewhere_when_it_is_read(place: Place) -> None:
    place.watch()
    other = place.left[0]
    place.flip(other)
    place.watch()
    place.store = LabelStore.open(place.folder, place.index, at_once_bytes=0)
    for row in range(len(place.index)):
        if int(place.index.shard[row]) != other:
            np.testing.assert_array_equal(place.store.read(row), true_labels(place.index, row))
        else:
            with pytest.raises(ValueError, match=rf"pack-0000{other // 2}\.u16 must hold the labels that meta\.json names"):
                place.store.read(row)
    place.flip(other)
    place.flip(next(shard for shard in range(4) if shard not in place.left))
    with pytest.raises(ValueError, match=r"\.u16 must hold the labels that meta\.json names"):
        place.watch()


def test_the_background_finds_what_the_sample_does_not_and_asks_to_stop(place: Place) -> None:
    place.watch()
    place.flip(place.left[0])
    watch = place.watch()
    place.store.read(0)
    watch.start()
    with pytest.raises(ValueError, match=r"\.u16 must hold the labels that meta\.json names"):
        watch.confirm()
    assert len(place.stopped) == 1 and place.stopped[0].startswith(str(place.folder))
    with pytest.raises(ValueError, match="must hold the labels"):
        watch.confirm()
    watch.close()


def test_a_checkpoint_waits_for_the_background(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    place.watch()
    place.flip(place.left[0])
    watch, waited_for = place.watch(), threading.Event()
    check_once, join = Pack.check_once, threading.Thread.join

    def check_when_waited_for(pack: Pack) -> None:
        waited_for.wait()
        check_once(pack)

    def wait(thread: threading.Thread, timeout: float | None = None) -> None:
        waited_for.set()
        join(thread, timeout)

    monkeypatch.setattr(Pack, "check_once", check_when_waited_for)
    monkeypatch.setattr(threading.Thread, "join", wait)
    watch.start()
    try:
        with pytest.raises(ValueError, match="must hold the labels"):
            watch.confirm()
    finally:
        waited_for.set()
        watch.close()


@pytest.mark.parametrize("at_once_bytes", [0, 1 << 20])
def test_whole_labels_are_confirmed_and_a_process_that_does_not_read_confirms_too(place: Place, at_once_bytes: int) -> None:
    watch = place.watch(at_once_bytes=at_once_bytes)
    watch.start()
    watch.confirm()
    watch.close()
    place.watch(reads=True)
    place.flip(place.left[0])
    watch = place.watch(reads=False)
    watch.start()
    watch.confirm()
    assert place.stopped == []


def cut(place: Place) -> None:
    os.truncate(labels_file(place.folder, "pack-00001"), 10)


def cut_table(place: Place) -> None:
    os.truncate(rows_file(place.folder, "pack-00001"), 10)


def swap_shards_in_place(place: Place) -> None:
    file = labels_file(place.folder, "pack-00001")
    with file.open("r+b") as opened:
        content = np.frombuffer(opened.read(), dtype="<u2")[::-1]
        opened.seek(0)
        opened.write(content.tobytes())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda place: place.flip(3), r"pack-00001\.u16 must hold the labels"),
        (swap_shards_in_place, r"pack-00001\.u16 must hold the labels"),
        (cut, r"pack-00001\.u16 must keep its \d+ bytes while in use, but has 10 now"),
        (cut_table, r"pack-00001\.rows\.npy must keep its \d+ bytes while in use, but has 10 now"),
    ],
)
def test_a_pack_that_is_changed_in_place_is_noticed_before_the_next_checkpoint(
    place: Place, change: Callable[[Place], None], sentence: str
) -> None:
    watch = place.watch(at_once_bytes=1 << 20)
    watch.start()
    watch.confirm()
    change(place)
    with pytest.raises(ValueError, match=sentence):
        watch.confirm()


def test_a_pack_that_another_file_replaces_is_read_on_as_it_was(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    watch = place.watch(at_once_bytes=1 << 20)
    before = [place.store.read(row).copy() for row in range(len(place.index))]
    for pack in ("pack-00000", "pack-00001"):
        file = labels_file(place.folder, pack)
        file.with_suffix(".new").write_bytes(bytes(file.stat().st_size))
        file.with_suffix(".new").replace(file)
    shutil.copy(rows_file(place.folder, "pack-00000"), rows_file(place.folder, "pack-00000").with_suffix(".new"))
    rows_file(place.folder, "pack-00000").with_suffix(".new").replace(rows_file(place.folder, "pack-00000"))
    for _ in range(2):
        watch.confirm()
    for row, labels in enumerate(before):
        np.testing.assert_array_equal(place.store.read(row), labels)
        np.testing.assert_array_equal(labels, true_labels(place.index, row))
    assert [record.message.split(" was replaced")[0] for record in caplog.records] == [
        str(labels_file(place.folder, pack)) for pack in ("pack-00000", "pack-00001")
    ]
    with pytest.raises(ValueError, match=r"pack-00000\.u16 must hold the labels"):
        place.watch(at_once_bytes=1 << 20)


def test_another_process_reads_what_was_checked_or_checks_it_again(place: Place) -> None:
    place.watch(at_once_bytes=1 << 20)
    sent = pickle.dumps(place.store)
    np.testing.assert_array_equal(pickle.loads(sent).read(0), true_labels(place.index, 0))
    shutil.copy(labels_file(place.folder, "pack-00000"), place.folder / "new")
    (place.folder / "new").replace(labels_file(place.folder, "pack-00000"))
    np.testing.assert_array_equal(pickle.loads(sent).read(0), true_labels(place.index, 0))
    place.flip(0)
    with pytest.raises(ValueError, match=r"pack-00000\.u16 must hold the labels"):
        pickle.loads(sent).read(0)
    np.testing.assert_array_equal(pickle.loads(sent).read(7), true_labels(place.index, 7))


def test_a_touched_pack_is_read_again_and_stays(place: Place) -> None:
    watch = place.watch(at_once_bytes=1 << 20)
    os.utime(labels_file(place.folder, "pack-00000"), ns=(1, 1))
    watch.confirm()
    watch.confirm()
    assert not place.stopped and CLUSTERS == 10
