"""Figures of a finished shard set, and what its done-files say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.done import is_done, refuse_many_skipped, skipped, task_file, write_skipped
from openwavlm.shards.index import COLUMNS, TABLES, Index, ShardInfo
from openwavlm.shards.index_writer import write_index
from openwavlm.shards.splits import split_hash
from openwavlm.shards.stats import partner_shares, shard_set_stats, split_sentence, split_stats
from openwavlm.shards.tasks import TaskLine


def index_of(folder: Path, shards: list[list[tuple[int, int]]], samples: int = 16_000) -> Index:
    """An index without audio, of rows (speaker, recording) by shard; 0 = unknown."""
    rows = [row for shard in shards for row in shard]
    columns: dict[str, Any] = {name: np.arange(len(rows)).astype(dtype) for name, dtype in COLUMNS.items()}
    columns |= {name: np.zeros(len(rows)) for name in ("source", "language") if name in COLUMNS}
    columns |= {"shard": np.repeat(np.arange(len(shards)), [len(shard) for shard in shards])}
    columns |= {"speaker": np.array([row[0] for row in rows]), "recording": np.array([row[1] for row in rows])}
    columns |= {"num_samples": np.full(len(rows), samples)}
    infos = [ShardInfo(f"shards/{n:05d}.tar", len(shard), 1000 + n, "", f"identity{n}") for n, shard in enumerate(shards)]
    tables = {name: [""] for name in TABLES}
    tables |= {"speakers": ["", "a", "b", "c"], "recordings": ["", "r", "s", "t", "u"]}
    return write_index(folder, columns=columns, tables=tables, shards=infos)


def test_the_share_of_pairs_of_one_speaker_is_counted_within_blocks_over_known_names(tmp_path):
    # Two blocks of one shard: {a, a, b, unknown} has 1 of 3 pairs, {a, a, a, c} 3 of 6. Recordings are all of one, or others.
    index = index_of(tmp_path, [[(1, 1), (1, 2), (2, 3), (0, 0)], [(1, 4), (1, 4), (1, 4), (3, 4)]])
    assert partner_shares(index, block_shards=1) == {
        "same_speaker_share": round(4 / 9, 6),
        "same_recording_share": round(6 / 9, 6),
    }
    # One block of both: five of a, one of b, one of c: 10 of 21 pairs; recordings 6 of 21.
    assert partner_shares(index, block_shards=2) == {
        "same_speaker_share": round(10 / 21, 6),
        "same_recording_share": round(6 / 21, 6),
    }


def test_without_known_names_there_is_no_share(tmp_path):
    index = index_of(tmp_path, [[(0, 1), (0, 2)], [(1, 0)]])
    assert partner_shares(index, block_shards=1) == {"same_speaker_share": None, "same_recording_share": 0.0}


def test_figures_of_a_shard_set_are_sums_over_its_rows_and_tasks(tmp_path):
    index = index_of(tmp_path, [[(1, 1), (2, 2)], [(3, 3)]], samples=16_000 * 1800)
    names = ("joined", "joined_clips", "short", "clipped_samples", "clipped_files")
    done = [dict(zip(names, range(1, 6), strict=True)), dict(zip(names, range(10, 60, 10), strict=True))]
    unusable = {"x": {"reason": "truncated"}, "y": {"reason": "all-zero"}, "z": {"reason": "truncated"}}
    found = shard_set_stats(index, done, unusable, source="s", seed=0)
    assert (found["utterances"], found["hours"], found["speakers"], found["recordings"], found["shards"]) == (3, 1.5, 3, 4, 2)
    assert found["nbytes"] == 2001 and [found[name] for name in names] == [11, 22, 33, 44, 55]
    assert (found["skipped"], found["skipped_by_reason"]) == (3, {"all-zero": 1, "truncated": 2})


def test_what_a_tenth_would_hold_out_is_counted_and_said(tmp_path):
    # None of a, b, c has a hash below .1.
    index = index_of(tmp_path / "known", [[(1, 1), (2, 2), (2, 3)], [(3, 3)]])
    found = split_stats(index)
    first = min("abc", key=split_hash)
    seconds = sum(name == first for name in "abbc")
    assert min(map(split_hash, "abc")) > 0.1 * 2**64
    assert found == {"validation_share": 0.1, "speakers": 3, "recordings": 0, "held_out": 1, "held_out_seconds": seconds}
    sentence = split_sentence({"split": found, "hours": 4 / 3600})
    assert sentence == f"validation_share=0.1 holds out 1 of 3 speakers, {seconds:.1f} s of 4.0 s"


def test_what_a_tenth_would_hold_out_of_unknown_speakers_is_recordings_and_of_one_nothing(tmp_path):
    unknown = split_stats(index_of(tmp_path / "unknown", [[(0, 1), (0, 2)], [(1, 3)]]), 0.9999999)
    assert (unknown["speakers"], unknown["recordings"], unknown["held_out"], unknown["held_out_seconds"]) == (1, 2, 2, 2)
    sentence = split_sentence({"split": unknown, "hours": 3 / 3600})
    assert sentence == "validation_share=1 holds out 2 of 1 speaker and 2 recordings of unknown speakers, 2.0 s of 3.0 s"
    one = split_stats(index_of(tmp_path / "one", [[(1, 1), (1, 2)]]))
    assert (one["held_out"], one["held_out_seconds"]) == (0, 0)
    assert split_sentence({"split": one, "hours": 1}) == (
        "the set has 1 speaker, and a held-out share needs at least two: train on it alone with validation_share=0"
    )


def entry(name: str, reason: str = "truncated") -> dict[str, str]:
    return {"path": f"{name}.wav", "name": name, "reason": reason, "detail": "so\tand so"}


def finish(output: Path, number: int, *, again: tuple[str, ...] = (), lost: tuple[dict[str, str], ...] = ()) -> TaskLine:
    shard = output / f"shards/{number}.tar"
    shard.parent.mkdir(parents=True, exist_ok=True)
    shard.write_bytes(b"12345")
    shard.with_suffix(".json").write_text("{}")
    done = {"shards": {f"shards/{number}.tar": 5}, "again": list(again), "skipped": list(lost)}
    write_sealed(task_file(output, number), {"format_version": 2, **done})
    return TaskLine(number, 0, 0)


def test_a_task_is_done_while_its_shards_are_there_and_whole(tmp_path):
    finish(tmp_path, 3)
    assert is_done(tmp_path, 3) and not is_done(tmp_path, 4)
    shard = tmp_path / "shards/3.tar"
    shard.write_bytes(b"1234")
    assert not is_done(tmp_path, 3)
    shard.write_bytes(b"12345")
    shard.with_suffix(".json").unlink()
    assert not is_done(tmp_path, 3)


def test_the_last_task_that_took_up_an_utterance_has_the_last_word(tmp_path):
    lines = [
        finish(tmp_path, 0, lost=(entry("a"), entry("b"))),
        finish(tmp_path, 1, again=("a", "b"), lost=(entry("b", "all-zero"),)),
        TaskLine(2, 0, 0),
    ]
    found = skipped(tmp_path, lines)
    assert {name: skip["reason"] for name, skip in found.items()} == {"b": "all-zero"}
    write_skipped(tmp_path, found)
    assert (tmp_path / "skipped.tsv").read_text() == "path\tname\treason\tdetail\nb.wav\tb\tall-zero\tso and so\n"


@pytest.mark.parametrize(("total", "rate", "refused"), [(200, 0.01, False), (199, 0.01, True), (2, 1.0, False), (100, 0.0, True)])
def test_as_many_may_be_unusable_as_the_rate_allows_and_no_more(tmp_path, total, rate, refused):
    unusable = {name: entry(name) for name in "ab"}
    if refused:
        with pytest.raises(ValueError, match=rf"2 of {total} utterances cannot be used .*first: a\.wav: truncated"):
            refuse_many_skipped(tmp_path, unusable, total, rate)
    else:
        refuse_many_skipped(tmp_path, unusable, total, rate)
