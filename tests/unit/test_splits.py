"""The split of speakers by hash; audio looked up in a shard set: as rows, and as clips inside joined rows."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from openwavlm.shards import splits
from openwavlm.shards.index import COLUMNS, MEMBER, Index, ShardInfo
from openwavlm.shards.index_writer import write_index
from openwavlm.shards.splits import audio_in, settled_share, shared_rows, split_names, validation_rows


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


# --- the split ----------------------------------------------------------------------------------------------------------


def index_of_names(folder: Path, speakers: list[str], recordings: list[str]) -> Index:
    """An index with a row for each pair of names; "" is an unknown speaker."""
    tables = {"speakers": [""], "recordings": [""], "sources": [""], "languages": [""]}
    columns = {name: np.zeros(len(speakers), dtype) for name, dtype in COLUMNS.items()}
    columns["key"] = np.arange(len(speakers), dtype=np.uint64)
    for column, table, names in (("speaker", "speakers", speakers), ("recording", "recordings", recordings)):
        known = {name: number for number, name in enumerate(dict.fromkeys(["", *names]))}
        columns[column], tables[table] = np.array([known[name] for name in names]), list(known)
    shards = [ShardInfo("a.tar", len(speakers), 1, "c", "i")]
    return write_index(folder, columns=columns, tables=tables, shards=shards)


def place_of(name: str, split_seed: int) -> float:
    """Where a name lies in [0, 1): its 64-bit BLAKE2b, little-endian."""
    digest = hashlib.blake2b(f"{split_seed}/split/{name}".encode(), digest_size=8).digest()
    return sum(byte * 256**place for place, byte in enumerate(digest)) / 2**64


@pytest.mark.parametrize("share", [0.0, 0.005, 0.02, 0.5, 0.97])
def test_of_ten_thousand_speakers_those_below_the_share_are_held_out(tmp_path, share):
    names = [f"librilight/{number}" for number in range(10_000)]
    index = index_of_names(tmp_path, names, ["r"] * len(names))
    for split_seed in (0, 7):
        found = validation_rows(index, share=share, split_seed=split_seed)
        assert found.tolist() == [place_of(name, split_seed) < share for name in names]
        assert abs(found.mean() - share) <= 4 * (share * (1 - share) / len(names)) ** 0.5


def test_the_hash_of_one_speaker_is_that_of_b2sum(tmp_path):
    # printf 3/split/LibriSpeech/1089 | b2sum -l 64 gives 790f389e714e0ae7
    place = int.from_bytes(bytes.fromhex("790f389e714e0ae7"), "little") / 2**64
    index = index_of_names(tmp_path, ["LibriSpeech/1089"], ["r"])
    assert validation_rows(index, share=place + 1e-9, split_seed=3).tolist() == [True]
    assert validation_rows(index, share=place - 1e-9, split_seed=3).tolist() == [False]


def test_a_larger_share_and_more_speakers_move_nobody_into_training(tmp_path):
    names = [f"a/{number}" for number in range(500)]
    few, many = (index_of_names(tmp_path / str(count), names[:count], ["r"] * count) for count in (200, 500))
    small, large = (validation_rows(many, share=share, split_seed=0) for share in (0.1, 0.3))
    assert 0 < small.sum() < large.sum() and not np.any(small & ~large)
    assert validation_rows(few, share=0.1, split_seed=0).tolist() == small[:200].tolist()


def test_splits_of_other_seeds_are_independent(tmp_path):
    names = [f"a/{number}" for number in range(4000)]
    index = index_of_names(tmp_path, names, ["r"] * len(names))
    one, other = (validation_rows(index, share=0.3, split_seed=seed) for seed in (0, 1))
    assert (one & other).mean() == pytest.approx(0.09, abs=4 * (0.09 * 0.91 / 4000) ** 0.5)


def test_all_rows_of_a_speaker_and_without_speaker_of_a_recording_are_on_one_side(tmp_path):
    chance = np.random.default_rng(0)
    speakers = [f"a/{number}" if number else "" for number in chance.integers(0, 30, 1000)]
    recordings = [f"a/r{number}" for number in chance.integers(0, 40, 1000)]
    found = validation_rows(index_of_names(tmp_path, speakers, recordings), share=0.5, split_seed=2)
    expected = [place_of(speaker or recording, 2) < 0.5 for speaker, recording in zip(speakers, recordings, strict=True)]
    assert found.tolist() == expected
    unknown = np.array([not speaker for speaker in speakers])
    assert unknown.any() and 0 < found[unknown].sum() < unknown.sum()


@pytest.mark.parametrize("share", [-0.01, 1.0, 1.5])
def test_a_share_outside_of_its_range_is_refused(tmp_path, share):
    with pytest.raises(ValueError, match=rf"must lie in \[0, 1\), but is {share}"):
        validation_rows(index_of_names(tmp_path, ["a/1"], ["a/r"]), share=share, split_seed=0)


# --- the settled share --------------------------------------------------------------------------------------------------

SHARES = (0.01, 0.05, 0.1, 0.3, 0.5)


def settled(*indexes: Index, share: float, split_seed: int = 0) -> float:
    return settled_share(indexes, share=share, split_seed=split_seed, key="data.validation_share")


def in_memory(names: list[str]) -> Any:
    """The columns of an index that a split reads, with a row for each speaker."""
    ids = np.arange(1, 1 + len(names))
    return SimpleNamespace(speakers=["", *names], speaker=ids, recordings=["", "r"], recording=np.ones_like(ids), path="here")


def speakers_held_out(names: list[str], share: float) -> set[str]:
    """Speakers that a new split of these speakers holds out."""
    index = in_memory(names)
    rows = validation_rows(index, share=settled(index, share=share), split_seed=0)
    return {name for name, held_out in zip(names, rows, strict=True) if held_out}


def drawn_speakers(count: int, seed: int) -> list[str]:
    return [f"here/{number}" for number in np.random.default_rng(seed).choice(10**6, count, replace=False)]


@pytest.mark.parametrize("count", [*range(2, 17), 25, 40])
def test_of_two_speakers_or_more_one_is_held_out_and_one_is_not_and_their_hashes_decide(count):
    for seed in range(8):
        names = drawn_speakers(count, seed)
        ordered = sorted(names, key=lambda name: place_of(name, 0))
        for share in (*SHARES, 1e-12, 0.97):
            found = speakers_held_out(names, share)
            below = [name for name in ordered if place_of(name, 0) < share]
            expected = ordered[:1] if not below else ordered[:-1] if len(below) == count else below
            assert found == set(expected)
            assert 0 < len(found) < count


def test_a_share_that_leaves_a_speaker_on_each_side_stays_and_a_settled_share_is_not_settled_again():
    index = in_memory(drawn_speakers(400, 0))
    assert [settled(index, share=share) for share in (0, 0.05, 0.1, 0.5)] == [0, 0.05, 0.1, 0.5]
    few = in_memory(drawn_speakers(3, 1))
    for share in (1e-9, 0.9999999):
        once = settled(few, share=share)
        assert once != share and settled(few, share=once) == once


@pytest.mark.parametrize("share", SHARES)
def test_added_speakers_move_the_one_that_only_the_rule_holds_out_and_nobody_else(share):
    moved_to_training = 0
    for seed in range(40):
        names = drawn_speakers(6, seed)
        before, after = (speakers_held_out(names[:count], share) for count in (3, 6))
        few = sorted(names[:3], key=lambda name: place_of(name, 0))
        below = [name for name in few if place_of(name, 0) < share]
        if len(below) == 3:
            # The speaker with the largest hash is trained on by the rule alone: it moves if an added one has a larger hash.
            moves = max(place_of(name, 0) for name in names[3:]) > place_of(few[-1], 0)
            assert (after & set(few)) - before == ({few[-1]} if moves else set()) and before <= after
        elif below:
            assert after & set(few) == before == set(below)
        else:
            # The speaker with the smallest hash is held out by the rule alone: it moves if an added one has a smaller hash.
            moves = min(place_of(name, 0) for name in names[3:]) < place_of(few[0], 0)
            assert before == {few[0]} and after & set(few) == (set() if moves else before)
            moved_to_training += moves
    assert moved_to_training or share >= 0.3


def test_a_recorded_share_holds_out_the_same_speakers_whatever_is_added():
    names = drawn_speakers(60, 3)
    few, many = (in_memory(names[:count]) for count in (5, 60))
    share = settled(few, share=0.01)
    before = validation_rows(few, share=share, split_seed=0)
    assert before.sum() == 1 and validation_rows(many, share=share, split_seed=0)[:5].tolist() == before.tolist()


def test_the_speakers_of_all_sets_are_settled_together(tmp_path):
    names = sorted(drawn_speakers(6, 0), key=lambda name: place_of(name, 0))
    one, other = (index_of_names(tmp_path / str(first), names[first::2], ["r"] * 3) for first in (0, 1))
    share = settled(one, other, share=1e-9)
    assert [validation_rows(index, share=share, split_seed=0).sum() for index in (one, other)] == [1, 0]
    same = index_of_names(tmp_path / "same", [names[0], names[5]], ["r", "r"])
    assert settled(one, other, same, share=1e-9) == share, "a speaker of two sets counts once"
    assert validation_rows(same, share=share, split_seed=0).tolist() == [True, False]


def test_recordings_of_unknown_speakers_are_settled_as_speakers_are(tmp_path):
    recordings = [f"a/{number}" for number in (3, 3, 4, 5, 5)]
    index = index_of_names(tmp_path, [""] * 5, recordings)
    assert sorted(split_names(index)) == ["a/3", "a/4", "a/5"]
    held_out = validation_rows(index, share=settled(index, share=1e-9), split_seed=0)
    smallest = min(recordings, key=lambda name: place_of(name, 0))
    assert held_out.tolist() == [name == smallest for name in recordings]
    mixed = index_of_names(tmp_path / "mixed", ["a/s", ""], ["a/3", "a/4"])
    assert sorted(split_names(mixed)) == ["a/4", "a/s"], "a recording with a known speaker does not count"
    assert validation_rows(mixed, share=settled(mixed, share=1e-9), split_seed=0).sum() == 1


def test_a_share_of_one_speaker_or_one_recording_is_refused_and_0_is_not(tmp_path):
    for speaker in ("a/1", ""):
        index = index_of_names(tmp_path / (speaker or "none"), [speaker] * 3, ["a/r"] * 3)
        assert settled(index, share=0) == 0
        with pytest.raises(
            ValueError, match=r"at least two speakers .* has 1 and data\.validation_share is 0\.1: set data\.val"
        ) as no:
            settled(index, share=0.1)
        assert "\n" not in str(no.value)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\), but is 1"):
        settled(index, share=1)


# --- audio in two sets --------------------------------------------------------------------------------------------------


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
