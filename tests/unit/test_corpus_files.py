"""Every file of a corpus is used, skipped by name, or ignored and counted; what is no regular file is never opened."""

import errno
import json
import logging
import os
import runpy
import socket
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.corpora.files import counted, find_files
from openwavlm.shards.corpora.listing import librispeech_utterances
from openwavlm.shards.index import Index
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.reader import ShardReader, read_fields
from openwavlm.shards.stats import sentences
from openwavlm.shards.upgrade import upgrade_shards
from synthetic import speech_like, write_speech_like

ROOT = Path(__file__).parents[2]


def touch(root: Path, *files: str) -> None:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()


def prepare(input: Path, output: Path, **settings: object) -> dict:
    return make_shards(input=input, output=output, **({"source": "s", "min_seconds": 0.3, "max_skip_rate": 1.0} | settings))


def test_every_file_is_audio_or_ignored_under_its_suffix(tmp_path):
    touch(
        tmp_path, "b/x.FLAC", "b/x.json", "b/x.txt", "a/y.Wav", "a/y.TXT", "README", ".hidden/q.wav", "a/._y.wav", "a/.git/c/d.e"
    )
    found = find_files(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found.audio] == ["a/y.Wav", "b/x.FLAC"]
    assert found.ignored == {".json": 1, ".txt": 2, "no suffix": 1, "hidden": 3}
    assert len(found.audio) + found.ignored.total() == sum(path.is_file() for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "suffix", [".wav", ".wave", ".flac", ".aiff", ".w64", ".caf", ".au", ".mp3", ".ogg", ".opus", ".m4a", ".wv1", ".ra", ".shn"]
)
@pytest.mark.parametrize("capitals", [False, True])
def test_no_suffix_of_an_audio_format_is_ignored(tmp_path, suffix, capitals):
    touch(tmp_path, f"x{suffix.upper() if capitals else suffix}")
    assert not find_files(tmp_path).ignored


def test_linked_folders_are_listed_once_and_loops_end(tmp_path):
    touch(tmp_path, "a/x.wav", "a/b/y.wav")
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path / "a")
    (tmp_path / "again").symlink_to(tmp_path / "a")
    (tmp_path / "self.wav").symlink_to(tmp_path / "self.wav")
    found = find_files(tmp_path)
    assert [path.name for path in found.audio] == ["self.wav", "x.wav", "y.wav"]
    assert found.linked_again == [tmp_path / "a" / "b" / "up", tmp_path / "again"]


def test_overlapping_subfolders_are_listed_once(tmp_path):
    touch(tmp_path, "a/x.wav", "a/b/y.wav", "c/z.wav")
    for subfolders in (["a", "a/b"], ["a/b", "a"], ["a", "a"]):
        assert sorted(path.name for path in find_files(tmp_path, subfolders).audio) == ["x.wav", "y.wav"]


def test_a_folder_that_cannot_be_listed_is_refused_by_name(tmp_path, monkeypatch):
    touch(tmp_path, "a/x.wav")
    real = os.scandir

    def scandir(folder):
        if Path(folder).name == "a":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr("openwavlm.shards.corpora.files.os.scandir", scandir)
    with pytest.raises(ValueError, match=r"the folder .*/a cannot be listed \(Permission denied\)"):
        find_files(tmp_path)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO, errno.ESTALE])
def test_a_folder_that_the_machine_fails_to_list_is_no_fault_of_the_corpus(tmp_path, monkeypatch, number):
    touch(tmp_path, "x.wav")

    def scandir(folder):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("openwavlm.shards.corpora.files.os.scandir", scandir)
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        find_files(tmp_path)
    assert caught.value.errno == number


def test_a_table_is_no_corpus_folder(tmp_path):
    touch(tmp_path, "list.tsv")
    with pytest.raises(ValueError, match=r"a corpus is a folder, but .*list\.tsv is a file: .* layout=manifest"):
        find_files(tmp_path / "list.tsv")


def test_fifos_sockets_and_broken_links_are_named_and_never_opened(tmp_path, caplog):
    corpus = tmp_path / "in"
    write_speech_like(corpus / "good.wav", 0.5)
    os.mkfifo(corpus / "pipe.wav")
    os.mkfifo(corpus / "pipe")
    (corpus / "gone.mp3").symlink_to(corpus / "nothing")
    (corpus / "loop.ogg").symlink_to(corpus / "loop.ogg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(corpus / "s.flac"))
        stats = prepare(corpus, tmp_path / "out")
    skipped = dict(line.split("\t")[::2][:2] for line in (tmp_path / "out" / "skipped.tsv").read_text().splitlines()[1:])
    assert skipped == {"gone.mp3": "missing", "loop.ogg": skipped["loop.ogg"], "pipe.wav": "unreadable", "s.flac": "unreadable"}
    assert (stats["files"], stats["files_used"], stats["files_skipped"], stats["files_ignored"]) == (6, 1, 4, 1)
    assert f"{corpus / 'pipe'} is a FIFO, a socket or a device: ignored" in caplog.text


def test_used_skipped_and_ignored_files_are_all_files_and_are_printed(tmp_path, monkeypatch, capsys):
    corpus = tmp_path / "in"
    for number in range(3):
        write_speech_like(corpus / f"{number}.wav", 0.5, number)
    (corpus / "bad.wav").write_bytes(b"no audio")
    touch(corpus, "0.txt", "1.txt", "notes.json", ".DS_Store")
    arguments = [f"input={corpus}", f"output={tmp_path / 'out'}", "min_seconds=0.3", "max_skip_rate=0.5"]
    monkeypatch.setattr(sys, "argv", ["make_shards.py", *arguments])
    monkeypatch.setattr(logging.root, "handlers", [])  # the program puts its own there
    runpy.run_path(str(ROOT / "data_prep" / "make_shards.py"), run_name="__main__")
    assert "8 files: 3 used, 1 skipped, 4 ignored (.txt 2, .json 1, hidden 1)\n" in capsys.readouterr().out
    stats = json.loads((tmp_path / "out" / "stats.json").read_text())
    assert stats["ignored_by_suffix"] == {".json": 1, ".txt": 2, "hidden": 1}
    assert stats["files"] == stats["files_used"] + stats["files_skipped"] + stats["files_ignored"] == 8


def test_figures_that_point_to_a_fault_are_sentences_where_they_are_above_zero():
    counts = {"files": 9, "files_used": 6, "files_skipped": 1, "files_ignored": 2, "ignored_by_suffix": {".txt": 2}}
    names = ["out_of_phase_files", "hours_outside_segments", "overlapping_segments", "overlapping_speakers", "overlapping_hours"]
    names += ["repeated_audio", "repeated_hours", "audio_of_several_speakers", "changed_in_input", "gone_from_input"]
    files = "9 files: 6 used, 1 skipped, 2 ignored (.txt 2)"
    assert sentences(counts | dict.fromkeys(names, 0)) == [files]
    assert sentences(counts | {name: number for number, name in enumerate(names, 1)}) == [
        files,
        "1 files have channels that cancel each other: one channel is used",
        "2.00 hours of the listed files lie outside all segments and are not used",
        "3 segments overlap an earlier segment of their file (5.00 hours are counted twice), 4 of them a segment of another speaker",
        "6 clips repeat the audio of another clip sample for sample (7.00 hours are counted twice); 8 clips are listed under several "
        "speakers",
        "9 utterances changed in the input after they were prepared; the shard set is not changed",
        "10 utterances are no longer in the input; the shard set keeps them",
    ]


def test_a_file_counts_as_used_if_one_of_its_segments_is(tmp_path):
    for number, name in enumerate("ab"):
        soundfile.write(tmp_path / f"{name}.wav", speech_like(2.0, number), 16_000)
    rows = ["a.wav\t0\t1", "a.wav\t3\t4", "b.wav\t5\t6", "c.wav\t0\t1", "./a.wav\t1\t2"]
    (tmp_path / "m.tsv").write_text("\n".join(["path\tstart_s\tend_s", *rows]))
    stats = prepare(tmp_path / "m.tsv", tmp_path / "out", layout="manifest")
    assert (stats["files"], stats["files_used"], stats["files_skipped"], stats["files_ignored"]) == (3, 1, 2, 0)
    assert (stats["utterances"], stats["skipped_by_reason"]) == (2, {"missing": 1, "out-of-range": 2})


def test_a_segment_beyond_the_end_does_not_take_the_others_of_its_file_with_it(tmp_path):
    samples = speech_like(3.0)
    soundfile.write(tmp_path / "a.wav", samples, 16_000)
    (tmp_path / "m.tsv").write_text("path\tstart_s\tend_s\na.wav\t0.5\t1.5\na.wav\t2\t9\na.wav\t7\t\n")
    stats = prepare(tmp_path / "m.tsv", tmp_path / "out", layout="manifest")
    assert (stats["utterances"], stats["skipped"]) == (1, 2)
    assert Index.open(tmp_path / "out").num_samples.tolist() == [16_000]
    text = (tmp_path / "out" / "skipped.tsv").read_text()
    assert "segment 2 s to 9 s of a recording of 3.000 s" in text and "segment 7 s to the end of a recording of 3.000 s" in text


def test_segments_that_all_lie_beyond_the_end_are_named_with_their_own_times(tmp_path):
    for name in ("a", "b"):
        write_speech_like(tmp_path / f"{name}.wav", 3.0)
    (tmp_path / "m.tsv").write_text("path\tstart\tend\na.wav\t\t\nb.wav\t500\t1500\nb.wav\t2000\t2900\n")
    prepare(tmp_path / "m.tsv", tmp_path / "out", layout="manifest")
    text = (tmp_path / "out" / "skipped.tsv").read_text()
    assert "segment 500 s to 1500 s of a recording of 3.000 s" in text
    assert "segment 2000 s to 2900 s of a recording of 3.000 s" in text


def test_files_of_unknown_length_are_cut_into_tasks_by_their_size(tmp_path, monkeypatch):
    for number in range(6):
        write_speech_like(tmp_path / "in" / f"{number}.wav", 1.0, number)
    monkeypatch.setattr("openwavlm.shards.planning.probe_seconds", lambda path: None)
    prepare(tmp_path / "in", tmp_path / "out", task_hours=8.0 / 3600)  # 32,000 bytes at 64 kbit/s: 4 s a file
    assert len((tmp_path / "out" / "tasks.jsonl").read_text().splitlines()) == 3


def test_kinds_are_listed_from_the_most_frequent_and_the_rare_are_summed():
    assert counted({".b": 1, ".a": 1, ".txt": 5}) == ".txt 5, .a 1, .b 1"
    assert counted({f".{n}": n for n in range(1, 5)}, most=2) == ".4 4, .3 3 and 3 of 2 other kinds"


# --- LibriSpeech --------------------------------------------------------------------------------------------------------


def test_transcripts_without_audio_and_audio_without_transcript_are_counted(tmp_path):
    touch(tmp_path, "19/198/19-198-0000.flac", "19/198/19-198-0001.flac", "19/199/19-199-0000.flac")
    (tmp_path / "19/198/19-198.trans.txt").write_text("\ufeff19-198-0000\tSO IT IS\r\n19-198-0007 LOST\n", encoding="utf-8")
    notes: Counter[str] = Counter()
    found = list(librispeech_utterances(tmp_path, find_files(tmp_path).audio, notes))
    assert [utterance.text for utterance in found] == ["SO IT IS", "", ""]
    assert notes == {"files without a transcript": 2, "transcripts without an audio file": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"19-198-0000 \xff\n", "are not UTF-8"), (b"19-198-0000 A\n19-198-0000 B\n", "line 2: there is a second transcript")],
)
def test_damaged_transcripts_are_refused_by_name(tmp_path, content, message):
    touch(tmp_path, "19/198/19-198-0000.flac")
    (tmp_path / "19/198/19-198.trans.txt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"19-198\.trans\.txt.*{message}"):
        list(librispeech_utterances(tmp_path, find_files(tmp_path).audio, Counter()))


# --- audio that is there more than once ---------------------------------------------------------------------------------


def test_equal_audio_and_its_speakers_are_counted(tmp_path):
    corpus = tmp_path / "in"
    for speaker, seeds in (("ann", (1, 2)), ("bob", (2, 3)), ("cid", (4,))):
        for seed in seeds:
            write_speech_like(corpus / speaker / f"{seed}.wav", 0.9)
            soundfile.write(corpus / speaker / f"{seed}.wav", speech_like(0.9, seed), 16_000)
    soundfile.write(corpus / "cid" / "copy.flac", speech_like(0.9, 4), 16_000)
    for min_seconds in (0.3, 1.5):  # as rows, and as clips of joined rows
        stats = prepare(corpus, tmp_path / str(min_seconds), speaker_folder=1, min_seconds=min_seconds)
        assert (stats["repeated_audio"], stats["audio_of_several_speakers"]) == (2, 1)
        assert stats["repeated_hours"] == pytest.approx(2 * 0.9 / 3600, abs=1e-6)


def test_a_changed_row_of_a_manifest_is_counted_and_the_set_keeps_the_old_one(tmp_path, caplog):
    for name in "ab":
        write_speech_like(tmp_path / f"{name}.wav", 0.5, ord(name))
    for speakers, changed in (("xy", 0), ("xz", 1)):
        (tmp_path / "m.tsv").write_text(f"path\tspeaker\na.wav\t{speakers[0]}\nb.wav\t{speakers[1]}\n")
        stats = prepare(tmp_path / "m.tsv", tmp_path / "out", layout="manifest")
        assert (stats["changed_in_input"], stats["gone_from_input"]) == (changed, 0)
    assert sorted(Index.open(tmp_path / "out").speakers) == ["", "s/x", "s/y"]
    assert "1 utterances have other times, names or text in the input" in caplog.text
    (tmp_path / "m.tsv").write_text("path\tspeaker\nb.wav\ty\n")
    stats = prepare(tmp_path / "m.tsv", tmp_path / "out", layout="manifest")
    assert (stats["utterances"], stats["files"], stats["changed_in_input"], stats["gone_from_input"]) == (2, 1, 0, 1)


def test_further_columns_of_joined_clips_stay_with_each_clip(tmp_path):
    for name in "ab":
        write_speech_like(tmp_path / f"{name}.wav", 0.4, ord(name))
    (tmp_path / "m.tsv").write_text("path\tspeaker\tsnr\tkey\na.wav\tann\t12\tk1\nb.wav\tann\t30\tk2\n")
    prepare(tmp_path / "m.tsv", tmp_path / "out", layout="manifest", min_seconds=0.8)
    members = read_fields(Index.open(tmp_path / "out"), 0)["members"]
    assert [(member["snr"], member["manifest_key"]) for member in members] == [("12", "k1"), ("30", "k2")]


# --- a task and its shards ----------------------------------------------------------------------------------------------


def test_a_task_that_is_done_again_removes_its_shards_that_it_no_longer_has(tmp_path):
    corpus = tmp_path / "in"
    for number in range(4):
        write_speech_like(corpus / f"{number}.wav", 0.5, number)
    settings = {"utterances_per_shard": 1}
    prepare(corpus, tmp_path / "out", **settings)
    folder = tmp_path / "out" / "shards" / "000"
    foreign = folder / "000000-notes.txt"
    foreign.write_text("mine")
    (folder / "000000-003.tar").unlink()
    (corpus / "2.wav").write_bytes(b"damaged by now")
    stats = prepare(corpus, tmp_path / "out", **settings)
    assert (stats["utterances"], stats["skipped"], stats["shards"]) == (3, 1, 3)
    assert {path.name for path in folder.iterdir()} == {f"000000-00{n}.{kind}" for n in range(3) for kind in ("tar", "json")} | {
        foreign.name
    }


def test_only_temporary_files_of_its_own_are_removed(tmp_path):
    write_speech_like(tmp_path / "in" / "a.wav", 0.5)
    output = tmp_path / "out"
    foreign = ["notes.tmp", "x.7.tmp", "shards/000/backup.tmp", "other/000000-000.tar.7.tmp"]
    own = ["stats.json.7.tmp", "shards/000/000000-000.tar.7.tmp", "done/000/000000.json.7.tmp", "tasks.jsonl.7.tmp"]
    prepare(tmp_path / "in", output)
    touch(output, *own, *foreign)
    prepare(tmp_path / "in", output)
    assert all((output / name).exists() for name in foreign) and not any((output / name).exists() for name in own)


def test_the_versions_of_the_decoders_are_noted_and_others_are_named(tmp_path, monkeypatch, caplog):
    write_speech_like(tmp_path / "in" / "a.wav", 0.5, 1)
    monkeypatch.setattr("openwavlm.shards.prepare.decoders", lambda: {"lib": "1"})
    monkeypatch.setattr("openwavlm.shards.writer.decoders", lambda: {"lib": "1"})
    stats = prepare(tmp_path / "in", tmp_path / "out")
    assert stats["decoders"] == [{"tasks": 1, "versions": {"lib": "1"}}]
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["decoders"] == {"lib": "1"}
    assert "decodes with" not in caplog.text
    write_speech_like(tmp_path / "in" / "b.wav", 0.5, 2)
    monkeypatch.setattr("openwavlm.shards.prepare.decoders", lambda: {"lib": "2"})
    monkeypatch.setattr("openwavlm.shards.writer.decoders", lambda: {"lib": "2"})
    stats = prepare(tmp_path / "in", tmp_path / "out")
    assert stats["decoders"] == [{"tasks": 1, "versions": {"lib": "1"}}, {"tasks": 1, "versions": {"lib": "2"}}]
    assert "was begun with lib 1, but this run decodes with lib 2" in caplog.text


def test_a_set_of_the_first_version_goes_on_as_it_was_begun(tmp_path, caplog):
    soundfile.write(tmp_path / "a.wav", speech_like(4.0, 1), 16_000)
    rows = ["path\toffset\tduration\tchannel", "a.wav\t1\t2\t0"]
    (tmp_path / "m.tsv").write_text("\n".join(rows))
    prepare(tmp_path / "m.tsv", tmp_path / "out", layout="manifest")
    # What the first version wrote: a whole file, and neither of the later settings and fields.
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    for name in ("channels", "columns_by_name", "decoders", "seal"):
        del settings[name]
    old = tmp_path / "old"
    old.mkdir()
    (old / "settings.json").write_text(json.dumps(settings | {"format_version": 1}))
    line = {"task": 0, "items": [[{"name": "a", "path": "a.wav", "recording": "a"}]], "again": []}
    (old / "tasks.jsonl").write_text(json.dumps(line) + "\n")
    upgrade_shards(old)
    stats = prepare(tmp_path / "m.tsv", old, layout="manifest")
    assert (stats["utterances"], Index.open(old).num_samples.tolist()) == (1, [64_000])
    for column in ("offset", "duration", "channel"):
        assert f"column {column!r} that is not used, though it seems to define a part of the audio" in caplog.text
    done = json.loads((old / "done/000/000000.json").read_text())
    for name in ("out_of_phase", "decoders", "seal"):
        del done[name]
    write_sealed(old / "done/000/000000.json", done)
    assert prepare(tmp_path / "m.tsv", old, layout="manifest")["decoders"] == [{"tasks": 1, "versions": {}}]
    with pytest.raises(ValueError, match="was made with channels=mean, but this run has channels=split"):
        prepare(tmp_path / "m.tsv", old, layout="manifest", channels="split")


# --- channels -----------------------------------------------------------------------------------------------------------


def stereo(path: Path, left: np.ndarray, right: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.stack([left, right], axis=1), 16_000)


def rows_of(output: Path) -> dict[str, tuple[str, str, np.ndarray]]:
    """Speaker, recording and samples by the stem of the key."""
    reader, index = ShardReader(output), Index.open(output)
    return {
        key.rpartition("-")[0]: (index.speakers[index.speaker[row]], index.recordings[index.recording[row]], reader.read(row))
        for row, key in enumerate(index.keys)
    }


def test_split_channels_are_rows_of_speakers_of_their_own(tmp_path):
    left, right, alone = (speech_like(0.6, seed) for seed in (1, 2, 3))
    stereo(tmp_path / "in" / "ann" / "call.wav", left, right)
    soundfile.write(tmp_path / "in" / "ann" / "mono.wav", alone, 16_000)
    stats = prepare(tmp_path / "in", tmp_path / "out", channels="split", speaker_folder=1)
    found = rows_of(tmp_path / "out")
    assert {name: row[:2] for name, row in found.items()} == {
        "call_0": ("s/ann#0", "s/ann/call"), "call_1": ("s/ann#1", "s/ann/call"), "mono": ("s/ann", "s/ann/mono"),
    }  # fmt: skip
    for name, samples in (("call_0", left), ("call_1", right), ("mono", alone)):
        np.testing.assert_array_equal(found[name][2], samples)
    assert (stats["utterances"], stats["files"], stats["files_used"]) == (3, 2, 2)
    before = (tmp_path / "out" / "tasks.jsonl").read_bytes()
    prepare(tmp_path / "in", tmp_path / "out", channels="split", speaker_folder=1)
    assert (tmp_path / "out" / "tasks.jsonl").read_bytes() == before


def test_split_channels_of_unknown_speakers_are_two_speakers_and_a_silent_one_is_skipped_by_name(tmp_path):
    stereo(tmp_path / "in" / "call.wav", speech_like(0.6, 1), speech_like(0.6, 2))
    stereo(tmp_path / "in" / "half.wav", speech_like(0.6, 3), np.zeros(9600, np.int16))
    stats = prepare(tmp_path / "in", tmp_path / "out", channels="split")
    assert sorted(row[0] for row in rows_of(tmp_path / "out").values()) == ["s/call#0", "s/call#1", "s/half#0"]
    assert stats["skipped_by_reason"] == {"all-zero": 1} and (stats["files_used"], stats["files_skipped"]) == (2, 0)
    assert "half.wav\thalf#1\tall-zero" in (tmp_path / "out" / "skipped.tsv").read_text()


def test_short_channels_are_joined_with_those_of_their_number(tmp_path):
    for call in range(4):
        stereo(tmp_path / "in" / "ann" / f"{call}.wav", speech_like(0.5, call), speech_like(0.5, 10 + call))
    prepare(tmp_path / "in", tmp_path / "out", channels="split", speaker_folder=1, min_seconds=1.0)
    rows = rows_of(tmp_path / "out")
    silence = np.zeros(1600, np.int16)
    expected = {
        (number, call): np.concatenate([speech_like(0.5, 10 * number + call), silence, speech_like(0.5, 10 * number + call + 1)])
        for number in range(2)
        for call in (0, 2)
    }
    assert sorted(row[0] for row in rows.values()) == ["s/ann#0", "s/ann#0", "s/ann#1", "s/ann#1"]
    for samples in expected.values():
        assert any(np.array_equal(samples, row[2]) for row in rows.values())


def test_the_first_channel_can_be_taken_alone_and_the_mean_is_the_default(tmp_path):
    left, right = speech_like(0.6, 1), speech_like(0.6, 2)
    stereo(tmp_path / "in" / "a.wav", left, right)
    mean = np.rint((left.astype(np.float64) + right) / 2)
    for channels, expected in (("first", left), ("mean", mean)):
        prepare(tmp_path / "in", tmp_path / channels, channels=channels)
        assert np.abs(rows_of(tmp_path / channels)["a"][2] - expected).max() <= (0 if channels == "first" else 1)
    with pytest.raises(ValueError, match="channels must be one of mean, first, split, but is 'both'"):
        prepare(tmp_path / "in", tmp_path / "both", channels="both")


def test_a_file_that_has_more_channels_than_were_planned_is_skipped(tmp_path):
    write_speech_like(tmp_path / "in" / "a.wav", 0.6, 1)
    write_speech_like(tmp_path / "in" / "b.wav", 0.6, 2)
    make_shards(input=tmp_path / "in", output=tmp_path / "out", source="s", min_seconds=0.3, channels="split", num_tasks=0)
    stereo(tmp_path / "in" / "a.wav", speech_like(0.6, 1), speech_like(0.6, 2))
    make_shards(
        input=tmp_path / "in", output=tmp_path / "out", source="s", min_seconds=0.3, channels="split", num_tasks=1, task_index=0
    )
    done = json.loads((tmp_path / "out" / "done/000/000000.json").read_text())
    assert [(entry["name"], entry["reason"]) for entry in done["skipped"]] == [("a", "no-such-channel")]


def test_a_channel_column_takes_that_channel_for_its_speaker(tmp_path):
    left, right = speech_like(1.0, 1), speech_like(1.0, 2)
    stereo(tmp_path / "call.wav", left, right)
    (tmp_path / "m.tsv").write_text("path\tchannel\tspeaker\tstart\tend\ncall.wav\tA\tann\t0\t0.5\ncall.wav\tB\tbob\t0.25\t1\n")
    stats = prepare(tmp_path / "m.tsv", tmp_path / "out", layout="manifest")
    rows = sorted(rows_of(tmp_path / "out").values(), key=lambda row: row[0])
    assert [row[:2] for row in rows] == [("s/ann", "s/call"), ("s/bob", "s/call")]
    np.testing.assert_array_equal(rows[0][2], left[:8000])
    np.testing.assert_array_equal(rows[1][2], right[4000:])
    assert stats["overlapping_segments"] == 0, "other channels are other audio"


def test_rows_beyond_what_is_held_in_memory_come_back_as_they_were(tmp_path, monkeypatch):
    for number in range(5):
        write_speech_like(tmp_path / "in" / f"{number}.wav", 0.5, number)
    prepare(tmp_path / "in", tmp_path / "memory", utterances_per_shard=2)
    monkeypatch.setattr("openwavlm.shards.writer._MOST_BYTES_IN_MEMORY", 10_000)
    prepare(tmp_path / "in", tmp_path / "disk", utterances_per_shard=2)
    tars = [{path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.tar")} for name in ("memory", "disk")]
    assert tars[0] == tars[1] and len(tars[0]) == 3
    assert sum(map(len, tars[0].values())) > 20_000
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {path.name for path in (tmp_path / "memory").iterdir()}
