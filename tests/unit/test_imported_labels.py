"""fairseq's label files: every line reaches the row of its path, with the labels of its frames; carried labels those of their audio."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from openwavlm.labels import rebind
from openwavlm.labels.fairseq_labels import Lines, read_dictionary, read_lines
from openwavlm.labels.import_labels import _reader
from openwavlm.runtime.randomness import stable_hash
from openwavlm.shards.corpora.utterance import utterance_key

NAMES = ["a/x", "b/x", "b/y", "c/d/z"]
SAMPLES = [400 + 320 * 4, 400 + 320 * 4 + 200, 399, 16_000]
AT_50 = [5, 5, 0, 49]  # ⌊(n − 400) / 320⌋ + 1
AT_100 = [9, 10, 0, 98]  # ⌊(n − 400) / 160⌋ + 1
CLASSES = 7


class Rows(SimpleNamespace):
    """An index without audio."""

    def __len__(self) -> int:
        return len(self.key)


def index(names: list[str] = NAMES, samples: list[int] = SAMPLES) -> Any:
    keys = np.array([stable_hash(utterance_key("speech", name)) for name in names], dtype=np.uint64)
    return Rows(key=keys, num_samples=np.array(samples), sources=["", "speech"], path=Path("shards"), keys=names)


def labels_of(row: int, count: int) -> list[int]:
    return [(3 * row + frame) % CLASSES for frame in range(count)]


def written(folder: Path, order: list[int], counts: list[int], root: str = "/corpus") -> tuple[Path, Path]:
    """A manifest and its labels: a line a row, in this order."""
    tsv, km = folder / "train.tsv", folder / "train.km"
    tsv.write_text(f"{root}\n" + "".join(f"{NAMES[row]}.flac\t{SAMPLES[row]}\n" for row in order))
    km.write_text("".join(" ".join(map(str, labels_of(row, counts[row]))) + "\n" for row in order))
    return tsv, km


@pytest.mark.parametrize(("rate", "counts"), [(50, AT_50), (100, AT_100)])
def test_each_line_reaches_its_row_with_the_labels_of_the_models_frames(tmp_path, rate, counts):
    order = [3, 2, 0, 1]
    tsv, km = written(tmp_path, order, counts)
    rows = index()
    lines = read_lines(tsv, km, rows, CLASSES, rate)
    assert lines.rows.tolist() == order
    label_row = _reader([lines], rows, rate, 0.0)
    for row in range(4):
        # At 100 a second frame 2 i has the support of the model's frame i.
        assert label_row(row).tolist() == labels_of(row, counts[row])[:: rate // 50]
        assert len(label_row(row)) == AT_50[row]


@pytest.mark.parametrize(("rate", "short", "long"), [(50, 48, 50), (100, 97, 99)])
def test_a_line_with_a_label_too_few_or_too_many_is_refused(tmp_path, rate, short, long):
    counts = AT_50 if rate == 50 else AT_100
    for wrong in (short, long):
        tsv, km = written(tmp_path, [3], [0, 0, 0, wrong])
        with pytest.raises(ValueError, match=rf"must have {counts[3]} labels at {rate} a second, but .* has {wrong}"):
            read_lines(tsv, km, index(), CLASSES, rate)


def test_a_path_is_found_by_its_longest_ending_that_names_a_row(tmp_path):
    tsv, km = written(tmp_path, [1, 3], AT_50, root="/elsewhere/c")
    assert read_lines(tsv, km, index(), CLASSES, 50).rows.tolist() == [1, 3]
    # Shards that were made a folder lower know only the last part, not its folder.
    lower = index(["x", "w", "y", "z"], [SAMPLES[1], 1, SAMPLES[2], SAMPLES[3]])
    assert read_lines(*written(tmp_path, [1, 3], AT_50), lower, CLASSES, 50).rows.tolist() == [0, 3]
    both = index(["x", "b/x", "y", "c/d/z"])
    assert read_lines(*written(tmp_path, [1], AT_50), both, CLASSES, 50).rows.tolist() == [1], (
        "not the row of the file name alone"
    )
    absent = index(["p", "q", "r", "s"])
    assert read_lines(*written(tmp_path, [1, 3], AT_50), absent, CLASSES, 50).rows.tolist() == [-1, -1]


def test_a_row_is_labelled_once_and_as_many_may_be_missing_as_the_rate_allows(tmp_path):
    rows = index()
    tsv, km = written(tmp_path, [3, 1, 0], AT_50)
    lines = read_lines(tsv, km, rows, CLASSES, 50)
    with pytest.raises(ValueError, match=r"1 of 4 are in no manifest \(for example b/y\)"):
        _reader([lines], rows, 50, 0.24)
    label_row = _reader([lines], rows, 50, 0.25)
    assert label_row(2) is None and label_row(1).tolist() == labels_of(1, 5)
    with pytest.raises(ValueError, match="must be labelled once"):
        _reader([lines, Lines(km, np.array([-1, 3]), lines.offsets)], rows, 50, 1.0)


@pytest.mark.parametrize(
    ("text", "clusters"), [("0 5\n1 4\n2 1\n", 3), ("2 1\n0 1\n1 1\nmadeupword0000 0\nmadeupword0001 0\n", 3), ("0 1\n", 1)]
)
def test_a_dictionary_has_as_many_clusters_as_it_lists(tmp_path, text, clusters):
    (tmp_path / "dict.km.txt").write_text(text)
    assert read_dictionary(tmp_path / "dict.km.txt") == clusters


# --- carried labels -----------------------------------------------------------------------------------------------------

ROW = np.dtype([("pcm", "<u8"), ("frames", "<u4"), ("offset", "<u8")])


def labelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two packs; audio 30 has five frames behind audio 10's four, audio 20 has one, audio 40 could not be read."""
    whole = {"check_rows": lambda: None, "check_once": lambda: None}
    packs = [
        SimpleNamespace(table=np.array([(10, 4, 0), (30, 5, 4)], ROW), labels=np.arange(100, 109, dtype=np.uint16), **whole),
        SimpleNamespace(table=np.array([(40, 0, 0), (20, 1, 0)], ROW), labels=np.array([7], dtype=np.uint16), **whole),
    ]
    old = SimpleNamespace(meta={"packs": [None, None]}, pack=packs.__getitem__)
    monkeypatch.setattr(rebind, "file_checksum", lambda path: "checksum of the stand-in")
    monkeypatch.setattr(rebind.LabelPacks, "open", lambda path: old)
    rebind._tables_of.cache_clear()


def other_shards(pcm: list[int], samples: list[int]) -> Any:
    return SimpleNamespace(
        pcm=np.array(pcm, dtype=np.uint64), num_samples=np.array(samples), path=Path("shards"), shard=np.zeros(len(pcm), np.int64),
        first_row=np.array([0, len(pcm)]), shards=[SimpleNamespace(name="shards/0.tar")],
    )  # fmt: skip


def samples_of(frames: int) -> int:
    return 400 + 320 * (frames - 1)


def test_labels_are_carried_to_the_row_of_the_same_audio(monkeypatch):
    labelling(monkeypatch)
    try:
        shards = other_shards([30, 5, 20, 10, 99, 40], [samples_of(frames) for frames in (5, 3, 1, 4, 2, 6)])
        labels_of_row = rebind.carrier(shards, Path("old"))
        carried = [labels_of_row(row) for row in range(6)]
        assert [None if labels is None else labels.tolist() for labels in carried] == [
            [104, 105, 106, 107, 108],
            None,  # unknown audio
            [7],
            [100, 101, 102, 103],
            None,
            None,  # known, but it could not be read
        ]
        with pytest.raises(ValueError, match=r"row 0 of shards has 6 and old has 5"):
            rebind.carrier(other_shards([30], [samples_of(6)]), Path("old"))(0)
        rebind.check_carried(other_shards([30, 40], [1, 1]), [0], Path("old"))
        with pytest.raises(ValueError, match=r"2 of 3 rows of shards \(for example row 1 in shards/0\.tar\) have none"):
            rebind.check_carried(other_shards([30, 5, 6], [1, 1, 1]), [0], Path("old"))
    finally:
        rebind._tables_of.cache_clear()
