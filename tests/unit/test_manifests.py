"""Manifests as programs and people write them: no column that says which audio is meant is ignored, no row is lost."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from openwavlm.shards.corpora.manifest import utterances
from openwavlm.shards.corpora.overlaps import find_overlaps
from openwavlm.shards.corpora.utterance import Utterance
from openwavlm.shards.index import Index
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.reader import ShardReader
from synthetic import speech_like

SETTINGS: dict[str, Any] = {"layout": "manifest", "source": "s", "min_seconds": 0.1}


def read(tmp_path: Path, text: str, name: str = "m.tsv", **settings: Any) -> list[Utterance]:
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    return list(utterances(tmp_path / name, **settings))


def segment(tmp_path: Path, header: str, cells: str, **settings: Any) -> tuple[float, float | None]:
    (found,) = read(tmp_path, f"path\t{header}\nx.wav\t{cells}\n", **settings)
    return found.start_s, found.end_s


def test_segments_of_a_nemo_manifest_are_the_stretches_that_it_names(tmp_path):
    samples = speech_like(6.0, 1)
    soundfile.write(tmp_path / "talk.wav", samples, 16_000)
    rows = [{"audio_filepath": "talk.wav", "offset": 0.2 * n, "duration": 0.2, "text": f"word {n}"} for n in range(30)]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stats = make_shards(input=tmp_path / "m.jsonl", output=tmp_path / "out", join_short=False, **SETTINGS)
    index = Index.open(tmp_path / "out")
    reader = ShardReader(index)
    pieces = {reader.read(row).tobytes() for row in range(len(index))}
    assert pieces == {samples[first : first + 3200].tobytes() for first in range(0, 96_000, 3200)}
    assert (stats["utterances"], stats["hours"], stats["overlapping_segments"]) == (30, round(6 / 3600, 6), 0)


@pytest.mark.parametrize(
    ("columns", "cells", "expected"),
    [
        ("start_s\tduration_s", "1.5\t2", (1.5, 3.5)),
        ("offset\tduration", "1.5\t2", (1.5, 3.5)),
        ("start\tend", "1.5\t2", (1.5, 2.0)),
        ("Start Time\tEND-TIME", "1.5\t2", (1.5, 2.0)),
        ("begin_time\tend_time", "1.5\t2", (1.5, 2.0)),
        ("begin\tdur", "1.5\t2", (1.5, 3.5)),
        ("onset\tstop", "1.5\t2", (1.5, 2.0)),
        ("start_ms\tend_ms", "1500\t2250", (1.5, 2.25)),
        ("duration[ms]\tx", "1500\t", (0.0, 1.5)),
        ("start_sec\tduration_sec", "1.5\t2", (1.5, 3.5)),
        ("segment_start\tsegment_end", "1.5\t2", (1.5, 2.0)),
        ("duration\tx", "2\t", (0.0, 2.0)),
        ("start\tduration", "1\t-", (1.0, None)),
        ("start\tend\tduration", "1\t3\t2.04", (1.0, 3.0)),
        ("startTime\tendSec", "1.5\t2", (1.5, 2.0)),
        ("utt_start\tclip_duration", "1.5\t2", (1.5, 3.5)),
        ("tmin\ttmax", "1.5\t2", (1.5, 2.0)),
        ("start\tlength_ms", "1.5\t250", (1.5, 1.75)),
        ("length\tx", "2\t", (0.0, None)),
    ],
)
def test_times_are_found_under_the_names_that_manifests_have_for_them(tmp_path, columns, cells, expected):
    assert segment(tmp_path, columns, cells) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_a_duration_that_is_mapped_ends_the_segment_in_every_kind_of_manifest(tmp_path, kind):
    row = {"file": "x.wav", "from": 0.1, "len": 0.2}
    text = {"tsv": "file\tfrom\tlen\nx.wav\t0.1\t0.2\n", "csv": "file,from,len\nx.wav,0.1,0.2\n", "jsonl": json.dumps(row)}
    columns = {"path": "file", "start_s": "from", "duration_s": "len"}
    (found,) = read(tmp_path, text[kind], f"m.{kind}", columns=columns)
    assert (found.start_s, found.end_s, found.name, found.extra) == (0.1, 0.3, "x@0.100-0.300", {})


def test_a_duration_by_name_counts_although_the_start_was_mapped_by_hand(tmp_path):
    assert segment(tmp_path, "from\tduration", "1\t2", columns={"start_s": "from"}) == (1.0, 3.0)


@pytest.mark.parametrize(
    ("columns", "cells", "message"),
    [
        ("start\toffset", "1\t2", "the columns 'start', 'offset' could all hold start_s: choose one with columns.start_s=…"),
        ("onset\toffset", "1\t2", "could all hold start_s"),
        ("start_sample\tx", "16000\t", "'start_sample' seems to give start_s, but not in seconds or milliseconds: convert it"),
        ("start\tframe_end", "0\t99", "'frame_end' seems to give end_s, but not in seconds"),
        ("start_us\tend_us", "1000000\t2000000", "'start_us' seems to give start_s, but not in seconds"),
        ("start\tend_minutes", "0\t1", "'end_minutes' seems to give end_s, but not in seconds"),
        (
            "start\tlength",
            "0\t5",
            r"'length' seems to give duration_s.*columns.duration_s=length if it is in seconds, or columns.ignore",
        ),
        ("start\tnum_frames", "0\t80000", "'num_frames' seems to give duration_s, but not in seconds"),
        ("start\tduration_ns", "0\t80000", "'duration_ns' seems to give duration_s, but not in seconds"),
        ("start\tend", "1_0\t2_0", "line 2: start_s .* must be a number of seconds, but is '1_0'"),
        ("start\tend\tduration", "1\t3\t9", "end_s is 3, but start_s and duration_s end at 10: correct the row"),
        ("channel\tx", "left\t", "a channel is a number from 0 or a letter from A, but is 'left'"),
        ("start\tend", "-1\t2", "line 2: a segment needs 0 ≤ start_s < end_s"),
        ("start\tduration", "1\t0", "line 2: a segment needs 0 ≤ start_s < end_s, but has 1 and 1.0"),
        ("start\tduration", "1\t-2", "line 2: a segment needs"),
        ("start\tduration", "nan\t2", r"line 2: start_s \(column 'start'\) must be a number of seconds, but is 'nan'"),
        ("start\tduration", "1\tinf", r"line 2: duration_s \(column 'duration'\) must be a number of seconds, but is 'inf'"),
        ("start\tend", "-inf\t2", "line 2: start_s .* must be a number"),
        ("start\tend", "1\t1,5", "line 2: end_s .* must be a number of seconds, but is '1,5'"),
    ],
)
def test_a_part_of_the_audio_that_is_not_clear_is_refused(tmp_path, columns, cells, message):
    with pytest.raises(ValueError, match=message):
        segment(tmp_path, columns, cells)


def test_columns_that_do_not_say_which_part_is_meant_can_be_named(tmp_path):
    columns = {"ignore": ["offset", "channel", "start_sample"]}
    (found,) = read(tmp_path, "path\toffset\tchannel\tstart_sample\nx.wav\t7\t1\t9\n", columns=columns)
    assert (found.name, found.end_s, found.channel) == ("x", None, None)
    assert found.extra == {"offset": "7", "channel": "1", "start_sample": "9"}
    with pytest.raises(ValueError, match="there is no column 'ofset'"):
        read(tmp_path, "path\toffset\nx.wav\t7\n", columns={"ignore": ["ofset"]})


def test_a_second_column_of_times_is_named_where_the_first_has_the_field_s_own_name(tmp_path):
    notes: Counter[str] = Counter()
    text = "path\tstart_s\toffset\tsnr\taudio_duration\nx.wav\t1\t2\t30\t7\ny.wav\t1\t2\t30\t7\n"
    assert [found.start_s for found in read(tmp_path, text, notes=notes)] == [1.0, 1.0]
    assert notes == {
        "rows with a column 'offset' that is not used, though it seems to define a part of the audio": 2,
        "rows with a column 'audio_duration' that is not used, though it seems to define a part of the audio": 2,
        "rows with a column 'snr' that is only copied to the shards' JSON": 2,
    }


def test_an_unknown_field_of_the_columns_is_refused(tmp_path):
    (tmp_path / "m.tsv").write_text("path\nx.wav\n")
    with pytest.raises(ValueError, match="but not 'strat_s'"):
        make_shards(input=tmp_path / "m.tsv", output=tmp_path / "out", columns={"strat_s": "x"}, **SETTINGS)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.tsv", "path\tspeaker\tspeaker\nx.wav\tann\tbob\n"),
        ("m.tsv", "path\tspeaker\t speaker \nx.wav\tann\tbob\n"),
        ("m.csv", "path,speaker,speaker\nx.wav,ann,bob\n"),
        ("m.jsonl", '{"path": "x.wav", "speaker": "ann", "speaker": "bob"}\n'),
    ],
)
def test_two_columns_of_one_name_are_refused(tmp_path, name, text):
    with pytest.raises(ValueError, match=r"line 1: 2 columns are called 'speaker': rename or remove all but one"):
        read(tmp_path, text, name)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.tsv", "\ufeff path \tspeaker\t text\t offset\r\n a/x.wav \t ann \tso it is\t 1\r\n\r\n  \t\t\t \r\n"),
        ("m.csv", '\ufeffpath , speaker,"text",offset\r\n"a/x.wav ", ann ,so it is, 1\r\n\r\n,,,\r\n'),
        ("m.csv", "\r\n\r\npath,speaker,text,offset\r\na/x.wav,ann,so it is,1\r\n"),
        ("m.jsonl", '\ufeff{" path": " a/x.wav", "speaker ": "ann ", "text": "so it is", "offset": 1}\r\n \r\n'),
    ],
)
def test_blanks_byte_order_marks_and_empty_lines_change_nothing(tmp_path, name, text):
    expected = Utterance("a/x@1.000-", "a/x.wav", 1.0, None, "ann", "a/x", "so it is")
    assert read(tmp_path, text, name) == [expected]


def test_a_quotation_mark_that_is_never_closed_does_not_swallow_the_rows_behind_it(tmp_path):
    with pytest.raises(ValueError, match=r"m\.csv, line 2: not valid CSV \(unexpected end of data\)"):
        read(tmp_path, 'path,text\na.wav,"hello\nb.wav,you\n', "m.csv")
    with pytest.raises(ValueError, match=r"m\.csv, line 3: not valid CSV"):
        read(tmp_path, 'path,text\na.wav,x\nb.wav,"hello" you\n', "m.csv")
    notes: Counter[str] = Counter()
    found = read(tmp_path, 'path,text,start_s\na.wav,"one\ntwo",0\nb.wav,x,soon\n'.replace("soon", "1"), "m.csv", notes=notes)
    assert [utterance.text for utterance in found] == ["one\ntwo", "x"]
    assert notes == {"rows with quoted cells of several lines of the file": 1}
    with pytest.raises(ValueError, match=r"m\.csv, line 4: start_s"):
        read(tmp_path, 'path,text,start_s\na.wav,"one\ntwo",0\nb.wav,x,soon\n', "m.csv")


def test_names_that_programs_write_for_unknown_are_no_names_and_are_counted(tmp_path):
    words = ["nan", "NaN", "None", "null", "<NA>", "-", "", "0", "Nan"]
    notes: Counter[str] = Counter()
    found = read(tmp_path, "path\tspeaker\n" + "".join(f"{n}.wav\t{word}\n" for n, word in enumerate(words)), notes=notes)
    assert [utterance.speaker for utterance in found] == ["", "", "", "", "", "", "", "0", "Nan"]
    assert sum(notes.values()) == 5 and notes["rows with the speaker 'nan', which is read as unknown"] == 1
    text = '{"path": "a.wav", "speaker": NaN, "text": NaN, "snr": NaN}\n{"path": "b.wav", "speaker": 0, "snr": [1, Infinity]}\n'
    first, second = read(tmp_path, text, "m.jsonl")
    assert (first.speaker, first.text, first.extra) == ("", "", {"snr": None})
    assert (second.speaker, second.extra) == ("0", {"snr": [1, None]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.wav", "duration": NaN}', r"duration_s \(column 'duration'\) must be a number of seconds, but is 'nan'"),
        ('{"path": "a.wav", "offset": 1e999}', "must be a number of seconds, but is 'inf'"),
        ('{"path": ["a.wav", "b.wav"]}', r"'path' must be a text or a number, but is \[\"a.wav\", \"b.wav\"\]"),
        ('{"path": {"bytes": "…"}}', "'path' must be a text or a number"),
        ('{"path": "a.wav", "speaker": true}', "'speaker' must be a text or a number, but is true"),
        ('{"path": "a\\u0000.wav"}', "names no file"),
        ('{"path": "a\\ud800.wav"}', "names no file"),
        ('{"path": "."}', "the path '.' names no file"),
        ('{"path": "/"}', "the path '/' names no file"),
        ('{"path": null}', "the path is empty"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_values_of_json_lines_that_are_no_names_or_times_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(tmp_path, text, "m.jsonl")
    assert "m.jsonl, line 1" in str(caught.value)


def test_an_utterance_that_is_there_twice_is_refused_with_its_lines_and_speakers(tmp_path):
    with pytest.raises(ValueError, match=r"lines 2 and 4: every utterance .* both are 'a' \(of the speakers 'ann' and 'bob'\)"):
        read(tmp_path, "path\tspeaker\na.wav\tann\nb.wav\tann\n./a.wav\tbob\n")


@pytest.mark.parametrize("header", ["PATH\tSpeaker\tStart_S\tEND_S", "Path\tSPEAKER\tstartS\tEnd s"])
def test_capitals_in_the_names_of_columns_do_not_count(tmp_path, header):
    (found,) = read(tmp_path, f"{header}\nx.wav\tann\t1\t2\n")
    assert (found.path, found.speaker, found.start_s, found.end_s) == ("x.wav", "ann", 1.0, 2.0)


def test_a_folder_is_no_manifest_and_rows_without_a_file_are_skipped_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"a manifest is a file, but .* is not"):
        list(utterances(tmp_path))
    (tmp_path / "folder.wav").mkdir()
    soundfile.write(tmp_path / "a.wav", speech_like(0.5), 16_000)
    (tmp_path / "m.tsv").write_text("path\na.wav\nfolder.wav\nnothing.wav\n")
    stats = make_shards(input=tmp_path / "m.tsv", output=tmp_path / "out", max_skip_rate=1.0, **SETTINGS)
    assert stats["skipped_by_reason"] == {"missing": 1, "unreadable": 1}
    assert (stats["files"], stats["files_used"], stats["files_skipped"]) == (3, 1, 2)


# --- overlaps -----------------------------------------------------------------------------------------------------------


def test_overlapping_segments_and_their_speakers_are_counted_and_printed_figures(tmp_path):
    soundfile.write(tmp_path / "a.wav", speech_like(5.0), 16_000)
    rows = ["0\t2\tann", "1\t3\tbob", "2.5\t4\tbob", "4\t5\tann"]
    (tmp_path / "m.tsv").write_text("path\tstart\tend\tspeaker\n" + "".join(f"a.wav\t{row}\n" for row in rows))
    stats = make_shards(input=tmp_path / "m.tsv", output=tmp_path / "out", **SETTINGS)
    assert (stats["overlapping_segments"], stats["overlapping_speakers"]) == (2, 1)
    assert stats["overlapping_hours"] == pytest.approx(1.5 / 3600, abs=1e-6)


def test_what_lies_outside_the_segments_is_counted(tmp_path):
    for name, seconds in (("a", 5.0), ("b", 2.0), ("c", 3.0)):
        soundfile.write(tmp_path / f"{name}.wav", speech_like(seconds, ord(name)), 16_000)
    rows = ["a.wav\t0\t2", "a.wav\t1\t3", "b.wav\t0\t1.6", "c.wav\t-\t-"]
    (tmp_path / "m.tsv").write_text("path\toffset\tend\n" + "".join(f"{row}\n" for row in rows))
    stats = make_shards(input=tmp_path / "m.tsv", output=tmp_path / "out", **SETTINGS)
    assert stats["hours_outside_segments"] == pytest.approx(2.0 / 3600, abs=1e-6), "0.4 s of b may be rounding"


def test_rows_to_the_end_of_a_file_overlap_by_its_length():
    rows = [Utterance(f"{start}", "a.wav", start) for start in (0.0, 6.0, 9.0)]
    found = find_overlaps(rows, {"a.wav": 10.0}.get)
    assert (found.segments, found.seconds) == (2, pytest.approx(5.0))
    assert find_overlaps(rows, lambda path: None).segments == 2


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20), st.sampled_from(["", "a", "b"])), max_size=12, unique=True))
def test_overlaps_are_those_of_a_count_of_every_tenth_of_a_second(drawn):
    rows = [Utterance(f"{n}", "x.wav", start / 10, (start + length) / 10, who) for n, (start, length, who) in enumerate(drawn)]
    found = find_overlaps(rows, lambda path: None)
    covered = np.zeros(80, dtype=int)
    for start, length, _ in drawn:
        covered[start : start + length] += 1
    assert found.seconds == pytest.approx(sum(length for _, length, _ in drawn) / 10 - np.count_nonzero(covered) / 10, abs=1e-6)
    ordered = sorted(drawn, key=lambda row: row[:2])
    earlier = [[other for other in ordered[:n] if sum(other[:2]) > row[0]] for n, row in enumerate(ordered)]
    assert found.segments == sum(map(bool, earlier))
    speakers = [{other[2] for other in others} for others in earlier]
    assert found.of_several_speakers == sum(
        bool(row[2]) and bool(known - {"", row[2]}) for row, known in zip(ordered, speakers, strict=True)
    )


# --- damage -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_a_damaged_manifest_is_read_or_refused_in_a_sentence_with_its_name(tmp_path, kind):
    rows = [
        {"path": f"a/{n}.wav", "speaker": f"s{n % 3}", "text": 'it\'s "so", ä', "offset": n, "duration": 2.5} for n in range(6)
    ]
    lines = {
        "tsv": ["\t".join(rows[0]), *("\t".join(map(str, row.values())) for row in rows)],
        "csv": [
            ",".join(rows[0]),
            *(",".join('"' + str(cell).replace('"', '""') + '"' for cell in row.values()) for row in rows),
        ],
        "jsonl": [json.dumps(row, ensure_ascii=False) for row in rows],
    }[kind]
    sound = ("\n".join(lines) + "\n").encode()
    path, random = tmp_path / f"m.{kind}", np.random.default_rng(0)
    path.write_bytes(sound)
    assert len(list(utterances(path))) == 6
    refused = 0
    for _ in range(400):
        damaged = bytearray(sound)
        place, length = int(random.integers(len(sound))), int(random.integers(1, 12))
        damaged[place : place + length] = random.integers(0, 256, int(random.integers(0, 12)), dtype=np.uint8).tobytes()
        path.write_bytes(damaged[: int(random.integers(len(damaged)))] if random.random() < 0.2 else damaged)
        try:
            list(utterances(path))
        except ValueError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error).replace(str(bytes(damaged)), ""), str(error)
    assert 100 < refused < 400
