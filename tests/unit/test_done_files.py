"""Done-files: what does not have its type, range or checksum is refused in a sentence, or its task is done again."""

import json
from pathlib import Path

import pytest

from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.done import is_done, read_done_file, task_done, task_file, write_done_file
from openwavlm.shards.index_writer import build_index

COLUMNS = {
    "offset": [512, 2048],
    "nbytes": [900, 900],
    "num_samples": [8000, 9000],
    "key": [1, 2**64 - 1],
    "pcm": [3, 4],
    "keys": ["a", "b"],
    "speaker": ["s/x", ""],
    "recording": ["s/r", "s/q"],
    "source": ["s", "s"],
    "language": ["", "en"],
}


@pytest.fixture
def done(tmp_path: Path) -> Path:
    tar = tmp_path / "shards" / "000" / "000000-000.tar"
    write_done_file(tar, "shards/000/000000-000.tar", 4096, "c", COLUMNS, [(1, 0, 3000, 7, 8), (1, 4000, 5000, 9, 10)])
    return tar.with_suffix(".json")


def test_a_done_file_reads_back_as_it_was_written(done: Path) -> None:
    found = read_done_file(done)
    assert {name: column.tolist() for name, column in found.columns.items()} | found.names | {"keys": found.keys} == COLUMNS
    assert found.members["offset"].tolist() == [0, 4000] and (found.info.rows, found.info.nbytes) == (2, 4096)


def changed(**columns: object) -> dict[str, object]:
    return {"columns": COLUMNS | columns}


DAMAGES = {
    "a short column": changed(offset=[512]),
    "a text for a number": changed(nbytes=[900, "900"]),
    "a number for a text": changed(speaker=["s/x", 3]),
    "a number too large": changed(num_samples=[8000, 2**32]),
    "a negative number": changed(offset=[-1, 2048]),
    "a fraction": changed(num_samples=[8000, 9000.0]),
    "no column": {"columns": {name: value for name, value in COLUMNS.items() if name != "pcm"}},
    "columns of another type": {"columns": []},
    "payload outside of the tar": changed(offset=[512, 3900]),
    "payload of no bytes": changed(nbytes=[900, 0]),
    "other names": changed(speaker=["s/y", ""]),
    "swapped names": changed(recording=["s/q", "s/r"]),
    "other samples": changed(num_samples=[8000, 9001]),
    "a clip outside of its row": {"members": [[1, 8000, 1001, 7, 8]]},
    "a clip of no row": {"members": [[2, 0, 10, 7, 8]]},
    "clips out of order": {"members": [[1, 0, 10, 7, 8], [0, 0, 10, 7, 8]]},
    "a clip of four numbers": {"members": [[1, 0, 10, 7]]},
    "more rows": {"rows": 3},
    "rows of another type": {"rows": "2"},
    "no identity": {"identity": None},
}


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_done_file_that_is_not_as_it_was_written_is_refused_by_name(done: Path, damage: str, sealed: bool) -> None:
    content = json.loads(done.read_text()) | DAMAGES[damage]
    if sealed:  # as a program would write it that computes something else
        write_sealed(done, {name: value for name, value in content.items() if name != "seal"})
    else:
        done.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"{done}.*: delete it and run openwavlm make-shards again$") as found:
        build_index(done.parents[2])
    assert type(found.value) is ValueError and not (done.parents[2] / "index").exists()


def test_a_done_file_of_a_row_without_samples_is_refused(done: Path) -> None:
    write_done_file(done.with_suffix(".tar"), "shards/000/000000-000.tar", 4096, "c", COLUMNS | {"num_samples": [8000, 0]}, [])
    with pytest.raises(ValueError, match=r"row 1 has a length of no samples"):
        read_done_file(done)


def test_a_done_file_of_another_shard_is_refused_by_its_name_or_by_the_size_of_the_tar(done: Path) -> None:
    other = done.with_name("000000-001.json")
    other.write_bytes(done.read_bytes())
    with pytest.raises(
        ValueError, match=rf"{other} must describe shards/000/000000-001\.tar, but describes shards/000/000000-000\.tar"
    ):
        build_index(done.parents[2])
    other.unlink()
    done.with_suffix(".tar").write_bytes(bytes(4097))
    with pytest.raises(
        ValueError, match=rf"{done} must describe 000000-000\.tar, which has 4097 bytes, but describes a tar of 4096"
    ):
        build_index(done.parents[2])


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"format_version": 2}', '{"format_version": "2"}', "[" * 100_000, "\x00\x01"]
)
def test_a_task_with_a_damaged_done_file_is_done_again(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file = task_file(tmp_path, 3)
    write_sealed(file, {"format_version": 2, "shards": {}, "again": [], "skipped": []})
    assert is_done(tmp_path, 3) and not caplog.messages
    file.write_text(text)
    assert task_done(tmp_path, 3) is None and not is_done(tmp_path, 3)
    assert str(file) in caplog.messages[0] and "the task is done again" in caplog.messages[0]
