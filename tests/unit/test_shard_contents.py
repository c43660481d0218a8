"""What a shard set holds, by hand: rows and joined clips, order and sizes of shards, identities, index, figures and checks."""

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from openwavlm.audio.errors import AudioError
from openwavlm.audio.read import check_clip
from openwavlm.runtime import open_files
from openwavlm.runtime.randomness import uniform, words
from openwavlm.runtime.resources import naming
from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards import reader as reader_module
from openwavlm.shards.corpora.utterance import Utterance, utterance_key
from openwavlm.shards.decoding_tasks import file_stamp
from openwavlm.shards.done import is_done, refuse_many_skipped, skipped, task_done, write_done_file
from openwavlm.shards.index import COLUMNS, TABLES, Index, ShardInfo, index_fingerprint, shard_identity
from openwavlm.shards.index_writer import build_index, write_index
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.reader import ShardReader, read_all_fields, read_fields
from openwavlm.shards.stats import partner_shares
from openwavlm.shards.tasks import append_tasks, cut_tasks, join_short_clips, read_task, task_lines
from openwavlm.shards.verify import verify_shards
from openwavlm.shards.writer import make_row, run_task
from synthetic import make_shard_set, speech_like

SETTINGS = {"source": "set", "seed": 6, "min_seconds": 1.0, "max_hours": 1.0, "channels": "mean"}


def number_of(text: str) -> int:
    """64 bits of BLAKE2b, little-endian: what everything is keyed and ordered by."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def pcm_of(samples: np.ndarray) -> int:
    return int.from_bytes(hashlib.md5(samples.astype("<i2").tobytes()).digest()[:8], "little")


def clip(name: str, samples: int, seed: int, **fields: Any) -> tuple[Utterance, np.ndarray]:
    return Utterance(name, f"{name}.flac", **fields), speech_like(samples / 16_000, seed)


# --- rows ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a/one", "one"),
        ("one", "one"),
        ("a/b-c/" + "x" * 60, "x" * 48),
        ("x" * 47 + "é.y", "x" * 47 + "_"),
        ("a/Ümlaut  (2).wav", "_mlaut_2_wav"),
        ("a/A_b-9", "A_b-9"),
        ("a/", ""),
    ],
)
def test_a_key_is_48_plain_characters_of_the_name_and_the_hash_of_source_and_whole_name(name, stem):
    for source in ("set", "other"):
        assert utterance_key(source, name) == f"{stem}-{number_of(f'{source}/{name}'):016x}"


def test_a_row_of_joined_clips_has_a_tenth_of_a_second_of_silence_between_them():
    parts = [
        clip("a/one", 8000, 1, speaker="ann", recording="a/one", text="it's", language="en", start_s=1.5),
        clip("a/two", 4801, 2, speaker="ann", recording="a/two", text="", language="de"),
        clip("a/three", 700, 3, speaker="ann", recording="a/three", text="so", language="en"),
    ]
    row, sizes, places = make_row(parts, "set"), (8000, 4801, 700), (0, 8000 + 1600, 8000 + 1600 + 4801 + 1600)
    silence = np.zeros(1600, dtype=np.int16)
    expected = np.concatenate([parts[0][1], silence, parts[1][1], silence, parts[2][1]])
    columns: dict[str, list] = {name: [] for name in (*COLUMNS, "keys") if name != "shard"}
    row.append_to(columns, 512, row.flac)
    assert {name: values[0] for name, values in columns.items()} == {
        "offset": 512,
        "nbytes": len(row.flac),
        "num_samples": len(expected),
        "key": number_of(row.key),
        "pcm": pcm_of(expected),
        "keys": row.key,
        "speaker": "set/ann",
        "recording": "",
        "source": "set",
        "language": "",
    }
    keys = [utterance_key("set", utterance.name) for utterance, _ in parts]
    pcm = [pcm_of(samples) for _, samples in parts]
    assert row.members == [
        (place, size, number_of(key), one) for place, size, key, one in zip(places, sizes, keys, pcm, strict=True)
    ]
    assert (row.fields["text"], row.fields["start_s"], row.fields["end_s"]) == ("it's so", None, None)
    assert [(member["start_s"], member["end_s"]) for member in row.fields["members"]] == [
        (1.5, 2.0), (0.0, round(4801 / 16_000, 6)), (0.0, 0.04375)
    ]  # fmt: skip
    samples, _ = soundfile.read(io.BytesIO(row.flac), dtype="int16")
    np.testing.assert_array_equal(samples, expected)


def test_a_row_of_one_clip_keeps_its_names_and_reserved_fields_are_renamed():
    utterance, samples = clip(
        "a/one", 8000, 1, speaker="", recording="r", language="en", start_s=2.0, extra={"source": "web", "x": 1}
    )
    row = make_row([(utterance, samples)], "set")
    assert row.key == utterance_key("set", "a/one") == f"one-{number_of('set/a/one'):016x}"
    assert row.fields == {
        "manifest_source": "web", "x": 1, "num_samples": 8000, "speaker": "", "recording": "r", "text": "", "language": "en",
        "source": "set", "start_s": 2.0, "end_s": 2.5,
    }  # fmt: skip
    assert row.members == []
    one_recording = [clip(f"r@{n}", 800, n, speaker="a", recording="r", language="en") for n in range(2)]
    joined = make_row(one_recording, "set").fields
    assert (joined["recording"], joined["language"]) == ("r", "en")


# --- tasks --------------------------------------------------------------------------------------------------------------


def joined_names(seconds: list[float | None], min_seconds: float = 2.0) -> list[str]:
    utterances = [Utterance(str(n), f"{n}.wav", speaker="a") for n in range(len(seconds))]
    return ["+".join(utterance.name for utterance in item) for item in join_short_clips(utterances, seconds, min_seconds)]


def test_the_silence_between_joined_clips_counts_and_none_comes_before_the_first():
    assert joined_names([0.96] * 4) == ["0+1", "2+3"]  # 0.96 + 0.1 + 0.96 = 2.02
    assert joined_names([0.94] * 6) == ["0+1+2", "3+4+5"]  # 1.98 is too short
    assert joined_names([1.95, 0.3, 1.95, 0.3]) == ["0+1", "2+3"]


def test_a_clip_of_exactly_the_least_length_and_one_of_unknown_length_stay_alone():
    assert joined_names([1.0, 2.0, 1.0, None, 1.0, 1.0]) == ["0+2", "1", "3", "4+5"]
    assert joined_names([1.0, 1.0, 1.0, 1.0, 0.5]) == ["0+1", "2+3+4"], "what is left over goes to the clips before it"


def test_tasks_are_cut_from_the_files_in_the_order_of_their_hashes():
    items = [[Utterance(f"f{n}", f"f{n}.wav")] for n in range(12)]
    order = sorted(range(12), key=lambda n: number_of(f"5/task/set/f{n}"))
    tasks = cut_tasks(items, [3600.0] * 12, seed=5, source="set", task_hours=4.1)  # 12 hours: round(12 / 4.1) = 3 tasks
    assert [[int(item[0].name[1:]) for item in task] for task in tasks] == [order[:4], order[4:8], order[8:]]
    assert len(cut_tasks(items, [3600.0] * 12, seed=5, source="set", task_hours=100.0)) == 1


def test_a_task_under_another_number_is_damage_and_only_its_own_names_are_taken_up_again(tmp_path):
    path = tmp_path / "tasks.jsonl"
    append_tasks(path, [[[Utterance("a", "a.wav")]], [[Utterance("b", "b.wav")]]], 0, {"b", "c"})
    assert [read_task(path, line).again for line in task_lines(path)] == [[], ["b"]]
    path.write_text(path.read_text().replace('"task": 1', '"task": 2'))
    with pytest.raises(ValueError, match=r"tasks\.jsonl, line 2 is damaged"):
        read_task(path, task_lines(path)[1])


# --- shards -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A task of eight clips of a second, of which one is half as long, one clips and one is silent; and its done-file."""
    folder = tmp_path_factory.mktemp("task")
    utterances = []
    for number in range(9):
        samples = speech_like(0.5 if number == 2 else 1.0, number).astype(np.float64) / 32768
        if number == 4:
            samples[100:150] = 1.5
        soundfile.write(folder / f"{number}.wav", samples * (number != 8), 16_000, subtype="FLOAT")
        utterances.append(Utterance(f"u{number}", f"{number}.wav", recording=f"r{number}"))
    (folder / "out").mkdir()
    append_tasks(folder / "out" / "tasks.jsonl", [[[utterance] for utterance in utterances]], 0)
    (line,) = task_lines(folder / "out" / "tasks.jsonl")
    return folder / "out", run_task(folder / "out", folder, {**SETTINGS, "utterances_per_shard": 3}, line)


def test_a_task_counts_what_it_wrote_and_what_it_left_out(written):
    output, done = written
    assert {name: done[name] for name in ("planned", "utterances", "samples", "joined", "joined_clips", "short")} == {
        "planned": 9, "utterances": 8, "samples": 7 * 16_000 + 8000, "joined": 0, "joined_clips": 0, "short": 1,
    }  # fmt: skip
    assert (done["clipped_samples"], done["clipped_files"]) == (50, 1)
    assert [(entry["name"], entry["reason"]) for entry in done["skipped"]] == [("u8", "all-zero")]
    with pytest.raises(AudioError) as silence:
        check_clip(np.zeros(16_000, dtype=np.int16))
    assert done["skipped"][0]["detail"] == silence.value.detail != "all-zero" and done["skipped"][0]["path"] == "8.wav"
    assert done["skipped"][0]["stamp"] == [(output.parent / "8.wav").stat().st_size, (output.parent / "8.wav").stat().st_mtime_ns]
    assert task_done(output, 0) == done and is_done(output, 0)


def test_rows_lie_in_the_order_of_their_hashes_in_shards_of_nearly_equal_size(written):
    output, _ = written
    index = build_index(output)
    keys = [utterance_key("set", f"u{number}") for number in range(8)]
    assert index.keys == sorted(keys, key=lambda key: number_of(f"6/shuffle/{key}"))
    assert [shard.rows for shard in index.shards] == [2, 3, 3] and [shard.name for shard in index.shards] == [
        f"shards/000/000000-00{part}.tar" for part in range(3)
    ]
    for shard in index.shards:
        content = (output / shard.name).read_bytes()
        assert (shard.nbytes, shard.checksum) == (len(content), hashlib.sha256(content).hexdigest())
    for row in range(8):
        assert read_fields(index, row)["recording"] == index.recordings[index.recording[row]].removeprefix("set/")


def test_the_fields_of_all_rows_are_those_of_each_and_open_each_shard_once(written, monkeypatch):
    index = build_index(written[0])
    expected, opened = [read_fields(index, row) for row in range(8)], list[Path]()
    monkeypatch.setattr(reader_module, "naming", lambda path: opened.append(path) or naming(path))
    assert list(read_all_fields(index)) == expected
    assert opened == [index.path / shard.name for shard in index.shards]


@pytest.mark.parametrize(("most", "sizes"), [(4, [4, 4]), (5, [4, 4]), (7, [4, 4]), (8, [8]), (1000, [8]), (1, [1] * 8)])
def test_a_task_has_as_few_shards_as_its_rows_need(written, tmp_path, most, sizes):
    shutil.copy(written[0] / "tasks.jsonl", tmp_path)
    (line,) = task_lines(tmp_path / "tasks.jsonl")
    run_task(tmp_path, written[0].parent, {**SETTINGS, "utterances_per_shard": most}, line)
    assert [shard.rows for shard in build_index(tmp_path).shards] == sizes


def test_fields_are_read_only_from_behind_a_rows_own_audio(written):
    index = build_index(written[0])
    index.nbytes = index.nbytes.astype(np.int64)
    index.nbytes[1] -= 600  # as of another tar: the block behind is no header of a .json
    with pytest.raises(ValueError, match=r"the audio of row 1 must be followed by its \.json in .*000000-000\.tar"):
        read_fields(index, 1)
    with pytest.raises(ValueError, match=r"the audio of row 1 must be followed by its \.json"):
        list(read_all_fields(index))
    assert read_fields(index, 0)["source"] == "set"


def test_fields_are_found_behind_audio_of_whole_blocks_and_of_a_byte_more_or_less(written, tmp_path):
    """Tar pads each member to blocks of 512 bytes; none is added to one that fills them."""
    index = build_index(written[0])
    index.path = tmp_path
    (tmp_path / index.shards[0].name).parent.mkdir(parents=True)
    index.nbytes = index.nbytes.astype(np.int64)
    for size in (1, 511, 512, 513, 1023, 1024, 1025):
        content = {"a.flac": b"f" * size, "a.json": json.dumps({"size": size}).encode() + b" " * size, "b.flac": b"g"}
        with tarfile.open(tmp_path / index.shards[0].name, "w") as tar:
            for name, payload in content.items():
                member = tarfile.TarInfo(name)
                member.size = len(payload)
                tar.addfile(member, io.BytesIO(payload))
        index.offset, index.nbytes[0] = index.offset * 0 + 512, size
        assert read_fields(index, 0) == {"size": size}


def test_a_shard_of_another_size_or_without_its_done_file_is_not_done(written, tmp_path):
    for number, spoil in enumerate(
        (
            lambda tar: tar.write_bytes(tar.read_bytes() + b"\0"),
            lambda tar: tar.write_bytes(tar.read_bytes()[:-1]),
            lambda tar: tar.unlink(),
            lambda tar: tar.with_suffix(".json").unlink(),
        )
    ):
        output = Path(shutil.copytree(written[0], tmp_path / str(number)))
        assert is_done(output, 0) and not is_done(output, 1)
        spoil(output / "shards" / "000" / "000000-001.tar")
        assert not is_done(output, 0)


def test_a_later_task_has_the_last_word_on_what_could_not_be_used(written, tmp_path):
    output = Path(shutil.copytree(written[0], tmp_path / "out"))
    append_tasks(output / "tasks.jsonl", [[[Utterance("u8", "8.wav")]]], 1, {"u8"})
    lines = task_lines(output / "tasks.jsonl")
    assert set(skipped(output, lines)) == {"u8"}
    second = {**task_done(output, 0), "again": ["u8"], "skipped": []}
    write_sealed(output / "done" / "000" / "000001.json", second)
    assert skipped(output, lines) == {}


def test_exactly_the_allowed_share_may_be_unusable():
    entry = {"name": "a", "path": "a.wav", "reason": "too-short", "detail": "399 samples"}
    refuse_many_skipped(Path("x"), {"a": entry}, 100, 0.01)
    with pytest.raises(ValueError, match=r"1 of 99 utterances cannot be used \(1\.01%\), more than max_skip_rate=0\.01"):
        refuse_many_skipped(Path("x"), {"a": entry}, 99, 0.01)


def test_a_changed_file_has_another_stamp(tmp_path):
    file = tmp_path / "a.wav"
    assert file_stamp(file) is None
    file.write_bytes(b"1")
    os.utime(file, ns=(0, 5))
    assert file_stamp(file) == [1, 5]


def test_unusable_files_that_left_the_input_no_longer_count(tmp_path):
    corpus = tmp_path / "in"
    corpus.mkdir()
    for number in range(10):
        soundfile.write(corpus / f"{number}.wav", speech_like(1.0, number) * (number > 1), 16_000)
    settings = {"input": corpus, "output": tmp_path / "out", "source": "s", "min_seconds": 0.5}
    with pytest.raises(ValueError, match="2 of 10 utterances cannot be used"):
        make_shards(**settings, max_skip_rate=0.1)
    (corpus / "0.wav").unlink()
    stats = make_shards(**settings, max_skip_rate=0.12)  # one of eight usable ones and itself
    assert (stats["utterances"], stats["skipped"]) == (8, 2)
    with pytest.raises(ValueError, match="1 of 9 utterances cannot be used"):
        make_shards(**settings, max_skip_rate=0.11)


def test_the_end_of_a_recording_is_as_long_as_what_follows_its_start(tmp_path):
    for number, name in enumerate("ab"):
        soundfile.write(tmp_path / f"{name}.wav", speech_like(3.0, number), 16_000)
    (tmp_path / "list.tsv").write_text("path\tspeaker\tstart_s\na.wav\tann\t2.5\nb.wav\tann\t2.4\n")
    stats = make_shards(input=tmp_path / "list.tsv", output=tmp_path / "out", layout="manifest", min_seconds=1.0)
    assert (stats["utterances"], stats["joined_clips"], stats["short"]) == (1, 2, 0)
    assert Index.open(tmp_path / "out").num_samples.tolist() == [8000 + 1600 + 9600]


def test_segments_of_a_recording_are_cut_from_its_one_decoding(tmp_path):
    samples = speech_like(4.0, 1)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    (tmp_path / "list.tsv").write_text("path\tspeaker\tstart_s\tend_s\na.wav\tann\t1.0\t2.5\na.wav\tann\t2.75\t\n")
    make_shards(input=tmp_path / "list.tsv", output=tmp_path / "out", layout="manifest", min_seconds=0.5)
    reader = ShardReader(tmp_path / "out")
    found = sorted((reader.read(row) for row in range(2)), key=len)
    np.testing.assert_array_equal(found[0], samples[44_000:])
    np.testing.assert_array_equal(found[1], samples[16_000:40_000])


def test_a_job_of_an_array_takes_the_tasks_of_its_number(tmp_path):
    corpus = tmp_path / "in"
    corpus.mkdir()
    for number in range(10):
        soundfile.write(corpus / f"{number}.wav", speech_like(1.0, number), 16_000)
    settings = {"input": corpus, "output": tmp_path / "out", "source": "s", "min_seconds": 0.5, "task_hours": 2.0 / 3600}
    assert make_shards(**settings, num_tasks=0) == {"tasks": 5}
    for index, expected in ((1, {1, 4}), (0, {0, 1, 3, 4}), (2, {0, 1, 2, 3, 4})):
        make_shards(**settings, num_tasks=3, task_index=index)
        assert {int(path.stem) for path in (tmp_path / "out" / "done").glob("*/*.json")} == expected


# --- index --------------------------------------------------------------------------------------------------------------


def test_identities_are_hashes_of_audio_key_and_length_of_each_row_in_order():
    pcm, key, samples = (np.array(column, dtype=np.uint64) for column in ([2**63, 1], [7, 2**64 - 1], [400, 16_000]))
    text = b"".join(
        int(p).to_bytes(8, "little") + int(k).to_bytes(8, "little") + int(n).to_bytes(4, "little")
        for p, k, n in zip(pcm, key, samples, strict=True)
    )
    identity = hashlib.blake2b(text, digest_size=16).hexdigest()
    assert shard_identity(pcm, key, samples) == identity
    assert index_fingerprint(["b", "a"]) == hashlib.blake2b(b"a\nb", digest_size=16).hexdigest()


def test_an_index_numbers_names_and_members_over_all_shards(tmp_path):
    folder = tmp_path / "shards" / "000"
    folder.mkdir(parents=True)
    contents = [
        (["x", "y"], ["a", ""], [(1, 0, 5, 11, 12)]),
        (["z"], ["b"], []),
        (["p", "q"], ["b", "a"], [(0, 0, 6, 13, 14), (1, 9, 7, 15, 16)]),
    ]
    for number, (keys, speakers, members) in enumerate(contents):
        columns = {
            name: list(range(10 * number + 20, 10 * number + 20 + len(keys)))
            for name in ("offset", "nbytes", "num_samples", "key", "pcm")
        }
        columns |= {
            "keys": keys,
            "speaker": speakers,
            "recording": keys,
            "source": ["s"] * len(keys),
            "language": [""] * len(keys),
        }
        write_done_file(folder / f"{number}.tar", f"shards/000/{number}.tar", 100, "c", columns, members)
    index = build_index(tmp_path)
    assert index.shard.tolist() == [0, 0, 1, 2, 2] and index.keys == ["x", "y", "z", "p", "q"]
    assert index.speakers == ["", "a", "b"] and index.speaker.tolist() == [1, 0, 2, 2, 1]
    assert index.recordings == ["", "x", "y", "z", "p", "q"] and index.recording.tolist() == [1, 2, 3, 4, 5]
    assert index.members["row"].tolist() == [1, 3, 4] and index.members["pcm"].tolist() == [12, 14, 16]
    assert index.num_samples.tolist() == [20, 21, 30, 40, 41]
    content = json.loads((folder / "1.json").read_text())
    del content["seal"]
    for change in ({"format_version": 3}, {"identity": "0"}, {"metadata": "0"}):
        write_sealed(folder / "1.json", content | change)
        with pytest.raises(
            ValueError, match=r"1\.json has format 3, but|1\.json is damaged \(it contradicts itself\): delete it"
        ):
            build_index(tmp_path)


def test_an_index_without_as_many_rows_as_its_shards_is_damaged(tmp_path):
    columns = {name: np.zeros(3, dtype) for name, dtype in COLUMNS.items()} | {"key": np.arange(3, dtype=np.uint64)}
    write_index(tmp_path, columns=columns, tables={name: [""] for name in TABLES}, shards=[ShardInfo("a.tar", 3, 1, "c", "i")])
    mark = tmp_path / "index" / "shards.json"
    content = json.loads(mark.read_text())
    content["shards"][0]["rows"] = 2
    del content["seal"]
    write_sealed(mark, content)
    with pytest.raises(ValueError, match="contradicts itself"):
        Index.open(tmp_path)


def test_the_share_of_equal_pairs_is_counted_among_known_names_of_a_block(tmp_path):
    # Shard 0: speakers 1 1 1 2 and two unknown; shard 1: 1 3 3.
    columns = {name: np.zeros(9, dtype) for name, dtype in COLUMNS.items()} | {"key": np.arange(9, dtype=np.uint64)}
    columns |= {"shard": np.repeat([0, 1], [6, 3]), "speaker": np.array([1, 1, 1, 2, 0, 0, 1, 3, 3]), "recording": np.zeros(9)}
    tables = {"speakers": ["", "a", "b", "c"], "recordings": [""], "sources": [""], "languages": [""]}
    shards = [ShardInfo("a.tar", 6, 1, "c", "i"), ShardInfo("b.tar", 3, 1, "c", "j")]
    index = write_index(tmp_path, columns=columns, tables=tables, shards=shards)
    # One block: 4 · 3 + 1 · 0 + 2 · 1 of 7 · 6 ordered pairs. A block a shard: 3 · 2 of 4 · 3, and 2 · 1 of 3 · 2.
    assert partner_shares(index) == {"same_speaker_share": round(14 / 42, 6), "same_recording_share": None}
    assert partner_shares(index, block_shards=1)["same_speaker_share"] == round((6 + 2) / (12 + 6), 6)


def test_a_block_of_pairs_has_twenty_shards(tmp_path):
    columns = {name: np.zeros(40, dtype) for name, dtype in COLUMNS.items()} | {"key": np.arange(40, dtype=np.uint64)}
    columns |= {"shard": np.arange(40), "speaker": np.ones(40)}
    tables = {"speakers": ["", "a"], "recordings": [""], "sources": [""], "languages": [""]}
    index = write_index(
        tmp_path, columns=columns, tables=tables, shards=[ShardInfo(f"{n}.tar", 1, 1, "c", f"{n}") for n in range(40)]
    )
    index.speaker = np.arange(1, 41) % 2 + 1  # two speakers: of twenty rows of a block, k of the first
    order = np.argsort(words(0, "stats.blocks", 40), kind="stable")
    counts = [np.bincount(index.speaker[order[first : first + 20]])[1:] for first in (0, 20)]
    expected = sum(int((count * (count - 1)).sum()) for count in counts) / (2 * 20 * 19)
    assert partner_shares(index)["same_speaker_share"] == round(expected, 6)


# --- reading and verifying ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("set"), speakers=4, utterances=6, seconds=(0.6, 0.9), utterances_per_shard=4)


def test_a_row_costs_one_read_of_its_bytes_and_the_files_used_last_stay_open(shard_set, monkeypatch):
    index, real_open, real_pread = Index.open(shard_set), os.open, os.pread
    opened: list[str] = []
    read: list[tuple[int, int]] = []
    monkeypatch.setattr(reader_module, "OPEN_FILES", open_files.OpenFiles(most=2))

    class Counted:
        O_RDONLY, O_CLOEXEC, close = os.O_RDONLY, os.O_CLOEXEC, staticmethod(os.close)

        @staticmethod
        def open(path: Path, flags: int) -> int:
            opened.append(Path(path).name)
            return real_open(path, flags)

        @staticmethod
        def pread(descriptor: int, nbytes: int, offset: int) -> bytes:
            read.append((nbytes, offset))
            return real_pread(descriptor, nbytes, offset)

    monkeypatch.setattr(open_files, "os", Counted)
    reader = ShardReader(index)
    rows = [0, 4, 1, 8, 2, 5, 3]  # shards 0 1 0 2 0 1 0: the first is never closed
    for row in rows:
        reader.read(row, 320, 4000)
    assert read == [(int(index.nbytes[row]), int(index.offset[row])) for row in rows]
    assert [name[-5] for name in opened] == ["0", "1", "2", "1"]
    reader.close()


def test_the_rest_of_a_row_is_read_where_no_number_is_given(shard_set):
    reader = ShardReader(shard_set)
    assert len(reader.read(0, 640)) == int(reader.index.num_samples[0]) - 640


@pytest.mark.parametrize("seed", [0, 3])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_verification_decodes_its_share_of_each_shard_and_at_least_one_row(shard_set, seed, share):
    index = Index.open(shard_set)
    draws = [uniform(words(seed, "verify", shard.rows, micro=number)) for number, shard in enumerate(index.shards)]
    expected = sum(max(1, int((draw < share).sum())) for draw in draws)
    assert verify_shards(shard_set, share=share, seed=seed).decoded == expected


def test_verification_finds_rows_of_another_identity_and_audio_of_another_md5(shard_set, tmp_path, monkeypatch):
    copy = Path(shutil.copytree(shard_set, tmp_path / "copy"))
    keys = np.load(copy / "index" / "key.npy")
    keys[5] += np.uint64(1)
    np.save(copy / "index" / "key.npy", keys)
    problems = verify_shards(copy, share=0.0).problems
    assert len(problems) == 4 and problems[0] == f"{copy / 'index' / 'key.npy'} does not have its checksum"
    assert problems[1].startswith("the keys of ") and problems[2].startswith("the index rows of ")
    assert all("000000-001.tar" in problem for problem in problems[1:3])
    assert "is not the task of" in problems[3] and "(1 utterances have no row)" in problems[3]
    real = ShardReader.read
    monkeypatch.setattr(ShardReader, "read", lambda self, row: real(self, row) ^ (1 if row == 7 else 0))
    (problem,) = verify_shards(shard_set, share=1.0).problems
    assert problem.startswith("row 7 of ") and problem.endswith("does not decode to the samples of its MD5")
