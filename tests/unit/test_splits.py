"""Audio looked up in a shard set: as rows, and as clips inside joined rows."""

from pathlib import Path

import numpy as np
import pytest

from openwavlm.data import splits
from openwavlm.data.index import COLUMNS, MEMBER, Index, ShardInfo, write_index
from openwavlm.data.splits import audio_in, shared_rows


def index_of(folder: Path, pcm: list[int], members: list[tuple[int, int]]) -> Index:
    """An index whose rows have these identities, with (row, identity) of the clips in joined ones."""
    columns = {name: np.zeros(len(pcm), dtype) for name, dtype in COLUMNS.items()}
    columns["key"] = np.arange(len(pcm), dtype=np.uint64)
    columns["pcm"] = np.array(pcm, dtype=np.uint64)
    clips = np.array([(row, 0, 1, 0, identity) for row, identity in members], MEMBER)
    tables = {"speakers": [""], "recordings": [""], "sources": [""], "languages": [""]}
    write_index(
        folder,
        columns=columns,
        tables=tables,
        shards=[ShardInfo("a.tar", len(pcm), 1, "c", "i")],
        keys=[str(row) for row in range(len(pcm))],
        members=clips,
    )
    return Index.open(folder)


@pytest.mark.parametrize("block", [1, 2, 100])
def test_audio_is_found_as_rows_and_inside_joined_rows(tmp_path, monkeypatch, block):
    monkeypatch.setattr(splits, "_BLOCK_ROWS", block)
    index = index_of(tmp_path, [5, 9, 2**63, 9, 1], [(2, 7), (2, 8), (4, 3)])
    wanted = np.array([3, 9, 10, 7, 2**63, 7, 0, 2**64 - 1], dtype=np.uint64)
    assert audio_in(wanted, index).tolist() == [True, True, False, True, True, True, False, False]
    rows = np.array([True, False, False, True, True])
    assert audio_in(wanted, index, rows).tolist() == [True, True, False, False, False, False, False, False]
    assert not audio_in(wanted, index, np.zeros(5, dtype=bool)).any()
    assert audio_in(wanted[:0], index).shape == (0,)


def test_rows_that_share_audio_are_their_own_or_hold_a_shared_clip(tmp_path):
    index = index_of(tmp_path / "one", [5, 6, 7, 8], [(1, 100), (1, 101), (3, 102), (3, 103)])
    other = index_of(tmp_path / "two", [7, 101, 50], [(2, 5), (2, 60)])
    assert shared_rows(index, other).tolist() == [True, True, True, False]
    assert shared_rows(index, index_of(tmp_path / "three", [1], [])).tolist() == [False] * 4
