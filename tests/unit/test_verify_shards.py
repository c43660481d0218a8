"""`verify.py` on shards: how many rows it decodes, and what it finds when a tar, the index or the audio is not what it was."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from openwavlm.data.index import Index
from openwavlm.data.reader import ShardReader
from openwavlm.data.verify import verify_shards
from synthetic import make_shard_set


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
    assert least.passed and "3 decoded: all as it should be" in least.sentence()
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
    assert not found.passed and [problem.split(" of ")[0] for problem in found.problems] == ["row 2", "row 6"]
    assert all(problem.endswith("does not decode to the samples of its MD5") for problem in found.problems)


def tar_of(folder: Path, number: int) -> Path:
    return folder / Index.open(folder).shards[number].name


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


def test_index_rows_of_other_audio_are_found(copy):
    (column,) = (copy / "index").glob("pcm*")
    content = bytearray(column.read_bytes())
    content[-1] ^= 1  # of the last row
    column.write_bytes(content)
    problems = verify_shards(copy, share=1.0).problems
    tar = tar_of(copy, 2)
    assert problems[0] == f"the index rows of {tar} do not have their identity" and len(problems) == 2
    assert problems[1].startswith(f"row 7 of {tar} cannot be read")


def test_a_tar_with_another_number_of_members_is_found(copy, monkeypatch):
    monkeypatch.setattr("openwavlm.data.verify._count_members", lambda tar: 5)
    problems = verify_shards(copy).problems
    assert [problem.partition(" must")[2] for problem in problems] == [
        f" hold {2 * shard.rows} members, but a tar reader finds 5" for shard in Index.open(copy).shards
    ]
