"""`verify.py` on shards: how many rows it decodes, and what it finds when a tar, the index or the audio is not what it was."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.index import COLUMNS, TABLES, Index
from openwavlm.shards.index_writer import write_index
from openwavlm.shards.reader import ShardReader
from openwavlm.shards.verify import _growth_problems, verify_shards
from openwavlm.shards.verify_input import verify_input
from synthetic import make_corpus, make_shard_set, write_speech_like


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight rows in three shards."""
    return make_shard_set(tmp_path_factory.mktemp("shards"), speakers=2, utterances=4, seconds=(0.5, 0.8), utterances_per_shard=3)


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def test_as_many_rows_are_decoded_as_asked_for_and_one_of_each_shard_at_least(shards):
    whole, least = verify_shards(shards, share=1.0), verify_shards(shards, share=0.0)
    assert (whole.shards, whole.rows, whole.decoded, whole.problems) == (3, 8, 8, [])
    assert (least.shards, least.rows, least.decoded, least.problems) == (3, 8, 3, [])
    assert not least.problems and "3 decoded: no problems" in least.sentence()
    with pytest.raises(ValueError, match="share must lie in"):
        verify_shards(shards, share=1.5)


def test_audio_that_is_not_that_of_its_md5_is_found_wherever_it_is_decoded(shards, monkeypatch):
    original = ShardReader.read

    def read(self: ShardReader, row: int, *rest: int) -> np.ndarray:
        samples = original(self, row, *rest).copy()
        samples[-1] += row in (2, 6)
        return samples

    monkeypatch.setattr(ShardReader, "read", read)
    found = verify_shards(shards, share=1.0)
    assert [problem.split(" of ")[0] for problem in found.problems] == ["row 2", "row 6"]
    assert all(problem.endswith("does not decode to the samples of its MD5") for problem in found.problems)


def tar_of(folder: Path, number: int) -> Path:
    return folder / Index.open(folder, check=False).shards[number].name


def test_each_kind_of_damage_is_named(copy):
    tar_of(copy, 0).write_bytes(tar_of(copy, 0).read_bytes() + b"\0")
    content = bytearray(tar_of(copy, 1).read_bytes())
    content[-1] ^= 1  # in the padding at the end, which no reader looks at
    tar_of(copy, 1).write_bytes(content)
    stray = tar_of(copy, 2).with_name("stray.tar")
    tar_of(copy, 2).rename(stray)
    problems = verify_shards(copy).problems
    assert len(problems) == 4
    assert "bytes, but has" in problems[0] and problems[1].endswith("does not have its checksum")
    assert problems[2].endswith(" is missing") and problems[3].startswith(f"{stray} is not in the index")


def test_audio_that_was_replaced_by_as_many_bytes_is_found(copy):
    tar = tar_of(copy, 0)
    index, content = Index.open(copy), bytearray(tar.read_bytes())
    first, second = (int(offset) for offset in index.offset[:2])
    size = min(int(nbytes) for nbytes in index.nbytes[:2]) // 2
    changes = [
        (first + size, bytes(byte ^ 255 for byte in content[first + size : first + size + 8])),  # one frame of one row
        (first, bytes(content[second : second + size])),  # half of another row, with its MD5
        (first - 512, b"other"),  # the name of a row
    ]
    for start, payload in changes:
        changed = content.copy()
        changed[start : start + len(payload)] = payload
        assert len(changed) == len(content) and changed != content
        tar.write_bytes(changed)
        problems = verify_shards(copy, share=0.0).problems
        assert f"{tar} does not have its checksum" in problems and all(str(tar) in problem for problem in problems)


@pytest.mark.parametrize("name", ["speaker", "recording", "source", "language"])
def test_names_that_are_not_those_of_their_checksum_are_found_though_every_file_is_whole(copy, name):
    index = Index.open(copy)
    columns = {column: getattr(index, column).copy() for column in COLUMNS}
    columns[name][4] = 0 if columns[name][4] else 1
    tables = {table: [*getattr(index, table), "other"] for table in TABLES}
    members, shards, keys = index.members, index.shards, index.keys
    write_index(copy, columns=columns, tables=tables, shards=shards, keys=keys, members=members)
    mark = copy / "index" / "shards.json"
    content = json.loads(mark.read_text())
    done = copy / shards[1].name
    assert verify_shards(copy).problems == [f"{done.with_suffix('.json')} does not describe the shard of the index"]
    content["shards"][1]["metadata"] = shards[1].metadata
    content["metadata"] = index.metadata
    del content["seal"]
    write_sealed(mark, content)
    (problem,) = verify_shards(copy).problems
    assert problem == f"the speakers, recordings, sources and languages of {done} do not have their checksum (metadata)"


def test_files_of_the_index_and_done_files_that_are_damaged_are_found(copy):
    (copy / "index" / "recordings.txt").write_bytes(b"\xff\n")
    done = tar_of(copy, 2).with_suffix(".json")
    done.write_text(done.read_text().replace("spk", "spj", 1))
    problems = verify_shards(copy).problems
    recordings = copy / "index" / "recordings.txt"
    assert problems[0].startswith(f"{recordings} must have ") and problems[1].startswith(
        f"{recordings} is damaged (byte 0 is not UTF-8)"
    )
    assert problems[2].startswith(f"{done} is damaged (its checksum differs)") and len(problems) == 3


def test_index_rows_of_other_audio_are_found(copy):
    (column,) = (copy / "index").glob("pcm*")
    content = bytearray(column.read_bytes())
    content[-1] ^= 1  # of the last row
    column.write_bytes(content)
    problems = verify_shards(copy, share=1.0).problems
    tar = tar_of(copy, 2)
    assert problems[:2] == [f"{column} does not have its checksum", f"the index rows of {tar} do not have their identity"]
    assert len(problems) == 3 and problems[2].startswith(f"row 7 of {tar} cannot be read")


def test_a_tar_with_another_number_of_members_is_found(copy, monkeypatch):
    monkeypatch.setattr("openwavlm.shards.verify._count_members", lambda tar: 5)
    problems = verify_shards(copy).problems
    assert [problem.partition(" must")[2] for problem in problems] == [
        f" hold {2 * shard.rows} members, but a tar reader finds 5" for shard in Index.open(copy).shards
    ]


@pytest.mark.parametrize("name", ["settings.json", "tasks.jsonl", "done/000/000000.json", "shards/000/000000-001.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")], ids=["lost", "empty"])
def test_a_lost_or_empty_file_that_a_set_is_extended_by_is_named(copy, name, damage):
    damage(copy / name)
    (problem,) = verify_shards(copy).problems
    assert problem.startswith(f"{copy / name} is ")


def test_a_set_without_any_of_the_files_that_it_is_extended_by_is_whole(copy):
    for name in ("settings.json", "tasks.jsonl", "done"):
        shutil.rmtree(copy / name) if (copy / name).is_dir() else (copy / name).unlink()
    for file in copy.glob("shards/*/*.json"):
        file.unlink()
    assert not verify_shards(copy).problems


def test_a_task_list_and_a_done_file_of_another_set_are_named(copy, tmp_path):
    corpus = make_corpus(tmp_path / "corpus", speakers=1, utterances=8, seconds=(0.5, 0.8), seed=4)
    other = make_shard_set(tmp_path / "other", corpus=corpus, utterances_per_shard=3)
    tasks, done = copy / "tasks.jsonl", copy / "done" / "000" / "000000.json"
    for file in (tasks, done):
        before = file.read_bytes()
        shutil.copy(other / file.relative_to(copy), file)
        (problem,) = verify_shards(copy).problems
        words = (f"{tasks}, line 1 is not the task of {done} (4 utterances", f"{done} names other shards than the index")
        assert problem.startswith(words[file == done])
        file.write_bytes(before)


def test_recordings_that_were_replaced_cut_or_removed_since_are_found_in_the_input(shards, tmp_path):
    corpus = Path(shutil.copytree(shards.parent / "corpus", tmp_path / "corpus"))
    whole = verify_input(shards, corpus, share=1.0)
    assert (whole.rows, whole.all_rows, whole.problems) == (8, 8, [])
    assert verify_input(shards, corpus, share=0.0).rows == 1
    replaced, lost, cut = (corpus / "spk00" / f"utt00{number}.flac" for number in range(3))
    write_speech_like(replaced, 0.6, seed=99)
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:3000])
    found = verify_input(shards, corpus, share=1.0)
    assert found.rows == 6 and found.sentence() == "6 of 8 rows made again from the input: 3 recordings have changed"
    assert [problem.split(" ")[0] for problem in found.problems] == [str(file) for file in (replaced, lost, cut)]
    assert found.problems[0] == f"{replaced} has other audio than {shards}"
    with pytest.raises(ValueError, match=r"the input .*/none does not exist"):
        verify_input(shards, tmp_path / "none")


class Counted:
    """A column of an index that counts the entries read."""

    def __init__(self, column: np.ndarray) -> None:
        self.column, self.read = column, 0

    def __getitem__(self, rows: slice) -> np.ndarray:
        self.read += len(self.column[rows])
        return self.column[rows]


def test_each_task_of_the_input_is_compared_with_the_keys_of_its_own_shards_only(tmp_path, monkeypatch):
    shards = make_shard_set(tmp_path, speakers=4, utterances=4, seconds=(0.5, 0.8), task_hours=0.001, utterances_per_shard=3)
    index = Index.open(shards)
    key, pcm = Counted(index.key), Counted(index.pcm)
    index.key, index.pcm = key, pcm
    monkeypatch.setattr(Index, "open", lambda path, check: index)
    found = verify_input(shards, tmp_path / "corpus", share=1.0)
    assert len((shards / "tasks.jsonl").read_text().splitlines()) == 3  # 16 rows of .65 s in tasks of about 3.6 s
    assert (found.rows, found.problems) == (16, [])
    assert (key.read, pcm.read) == (16, 16)
    assert _growth_problems(index) == []
    assert key.read == 32


def test_a_repaired_recording_is_compared_with_the_row_of_the_task_that_took_it_up(tmp_path):
    corpus = make_corpus(tmp_path / "corpus", speakers=1, utterances=4, seconds=(0.5, 0.8))
    bad = corpus / "spk00" / "utt001.flac"
    whole = bad.read_bytes()
    bad.write_bytes(b"")
    settings = {"corpus": corpus, "min_seconds": 1.5, "max_skip_rate": 0.5}
    make_shard_set(tmp_path, **settings)
    bad.write_bytes(whole)
    shards = make_shard_set(tmp_path, **settings)
    found = verify_input(shards, corpus, share=1.0)
    assert (found.rows, found.all_rows, found.problems) == (len(Index.open(shards)), len(Index.open(shards)), [])
