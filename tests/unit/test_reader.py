"""The reader: what is in a row comes out, and whatever was done to a shard is noticed."""

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from openwavlm.audio.encode import pcm_id, pcm_md5
from openwavlm.runtime.open_files import OpenFiles
from openwavlm.shards import reader as reader_module
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio, check_shards
from openwavlm.shards.verify import verify_shards
from synthetic import make_shard_set


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    return make_shard_set(folder, speakers=3, utterances=4, seconds=(0.6, 1.5), utterances_per_shard=4)


@pytest.fixture
def shard_set(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def tar_of(shard_set: Path, shard: int) -> Path:
    return shard_set / Index.open(shard_set).shards[shard].name


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def first_problem(shard_set: Path) -> str:
    result = verify_shards(shard_set, share=1.0)
    assert result.problems
    assert result.problems[0] in result.sentence()
    return " | ".join(result.problems)


def test_every_row_decodes_to_the_samples_of_its_md5(pristine: Path) -> None:
    index = Index.open(pristine)
    reader = ShardReader(index)
    for row in range(len(index)):
        samples = reader.read(row)
        assert samples.dtype == np.int16
        assert len(samples) == index.num_samples[row]
        assert pcm_id(pcm_md5(samples)) == index.pcm[row]
    check_shards(index)
    assert not verify_shards(pristine, share=1.0).problems
    assert verify_shards(pristine, share=1.0).decoded == len(index)


def test_a_piece_is_a_slice_of_the_whole(pristine: Path) -> None:
    reader = ShardReader(pristine)
    whole = reader.read(3)
    np.testing.assert_array_equal(reader.read(3, 640, 4000), whole[640:4640])
    np.testing.assert_array_equal(reader.read(3, 5000), whole[5000:])


def test_a_piece_is_decoded_into_the_array_that_is_given(pristine: Path) -> None:
    reader = ShardReader(pristine)
    batch = np.full((2, 5000), 7, dtype=np.int16)
    reader.read(3, 640, 4000, out=batch[1, :4000])
    np.testing.assert_array_equal(batch[1, :4000], reader.read(3, 640, 4000))
    assert (batch[0] == 7).all()
    assert (batch[1, 4000:] == 7).all()


def test_a_piece_past_the_end_is_unreadable(pristine: Path) -> None:
    reader = ShardReader(pristine)
    length = int(reader.index.num_samples[0])
    with pytest.raises(UnreadableAudio, match="samples decode"):
        reader.read(0, 0, length + 1)


def test_no_more_files_stay_open_than_allowed(pristine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "OPEN_FILES", OpenFiles(most=2))
    reader = ShardReader(pristine)
    before = open_files()
    for row in (0, 4, 8, 0, 4, 8):
        reader.read(row)
    assert open_files() - before == 2
    reader.close()
    assert open_files() == before
    assert len(reader.read(0))


def test_a_reader_survives_pickling_and_fork(pristine: Path) -> None:
    reader = ShardReader(pristine)
    expected = reader.read(5)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(reader)).read(5), expected)
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(reader.read(5), expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(reader.read(5), expected)


def test_a_missing_shard_is_noticed(shard_set: Path) -> None:
    tar_of(shard_set, 1).unlink()
    index = Index.open(shard_set)
    with pytest.raises(ValueError, match=r"000000-001.tar is missing: restore"):
        check_shards(index)
    with pytest.raises(UnreadableAudio, match=r"row 4 .*No such file"):
        ShardReader(index).read(4)
    assert len(ShardReader(index).read(3))
    assert "is missing" in first_problem(shard_set)


def test_a_shard_cut_between_two_members_is_noticed(shard_set: Path) -> None:
    index = Index.open(shard_set)
    tar = tar_of(shard_set, 0)
    os.truncate(tar, int(index.offset[2]) - 512)
    with pytest.raises(ValueError, match=r"must have \d+ bytes, but has \d+: restore it"):
        check_shards(index)
    assert len(ShardReader(index).read(1))
    with pytest.raises(UnreadableAudio, match="run openwavlm verify"):
        ShardReader(index).read(2)
    assert "must hold 8 members, but a tar reader finds 4" in first_problem(shard_set)


def test_a_shard_that_something_was_appended_to_is_noticed(shard_set: Path) -> None:
    with tar_of(shard_set, 1).open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"000000-001.tar must have \d+ bytes, but has \d+: restore it"):
        check_shards(Index.open(shard_set))
    assert "must have" in first_problem(shard_set)


def test_a_swapped_shard_is_noticed(shard_set: Path) -> None:
    index = Index.open(shard_set)
    first, second = tar_of(shard_set, 0), tar_of(shard_set, 1)
    content = second.read_bytes()[: first.stat().st_size]
    first.write_bytes(content.ljust(first.stat().st_size, b"\0"))
    with pytest.raises(ValueError, match="does not begin with its first utterance"):
        check_shards(index)
    with pytest.raises(UnreadableAudio, match="other data at this place"):
        ShardReader(index).read(0)
    assert "checksum" in first_problem(shard_set)


def test_a_garbled_payload_is_noticed(shard_set: Path) -> None:
    index = Index.open(shard_set)
    with tar_of(shard_set, 0).open("r+b") as file:
        file.seek(int(index.offset[1]) + int(index.nbytes[1]) // 2)
        file.write(bytes(64))
    check_shards(index)
    with pytest.raises(UnreadableAudio, match="does not decode"):
        ShardReader(index).read(1)
    assert len(ShardReader(index).read(0))
    problems = first_problem(shard_set)
    assert "does not have its checksum" in problems
    assert "row 1 " in problems


def test_a_shard_that_the_index_does_not_know_is_noticed(shard_set: Path) -> None:
    shutil.copy(tar_of(shard_set, 0), shard_set / "shards" / "000" / "999999-000.tar")
    assert "not in the index" in first_problem(shard_set)


def test_verification_decodes_at_least_one_row_of_every_shard(pristine: Path) -> None:
    assert verify_shards(pristine, share=0.0).decoded == 3
    with pytest.raises(ValueError, match="share must lie in"):
        verify_shards(pristine, share=2.0)
