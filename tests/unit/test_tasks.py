"""Planning the preparation: which clips are joined, which go together, and how corpora are listed."""

import json
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwavlm.shards.corpora import manifest
from openwavlm.shards.corpora.files import find_files
from openwavlm.shards.corpora.listing import folder_utterances, librispeech_utterances, list_corpus
from openwavlm.shards.corpora.utterance import Utterance, utterance_key
from openwavlm.shards.tasks import append_tasks, cut_tasks, join_short_clips, read_task, task_lines


def clips(*speakers: str) -> list[Utterance]:
    return [Utterance(f"{n}", f"{n}.wav", speaker=name, recording=f"{n}") for n, name in enumerate(speakers)]


def names(items: Iterable[list[Utterance]]) -> list[str]:
    return ["+".join(utterance.name for utterance in item) for item in items]


def touch(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def test_short_clips_join_neighbours_of_their_speaker_until_long_enough() -> None:
    seconds = [1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0]
    items = join_short_clips(clips("a", "b", "a", "a", "b", "a", "b"), seconds, 2.0)
    assert names(items) == ["0+3+5", "1+4+6", "2"]
    assert names(join_short_clips(clips("a", "a", "a", "a"), [1.0, 1.0, 1.0, 1.0], 2.0)) == ["0+1", "2+3"]


def test_a_short_clip_without_a_neighbour_stays_alone() -> None:
    assert names(join_short_clips(clips("a", "b", ""), [1.0, 1.0, 1.0], 2.0)) == ["0", "1", "2"]


def test_without_speakers_only_clips_of_one_recording_join() -> None:
    same = [Utterance(f"{n}", f"{n}.wav", recording=recording) for n, recording in enumerate("xyxy")]
    assert names(join_short_clips(same, [1.0] * 4, 2.0)) == ["0+2", "1+3"]


def test_a_clip_is_short_below_the_least_length_and_silence_counts_towards_it() -> None:
    assert names(join_short_clips(clips("a", "a", "a"), [2.0, 1.99, 1.0], 2.0)) == ["0", "1+2"]
    assert names(join_short_clips(clips("a", "a", "a"), [1.0, 2.0, 1.0], 2.0)) == ["0+2", "1"]
    # 0.95 + 0.1 of silence + 0.95 s are enough, 0.94 + 0.1 + 0.95 s are not.
    assert names(join_short_clips(clips("a", "a", "a", "a"), [0.95, 0.95, 0.95, 0.95], 2.0)) == ["0+1", "2+3"]
    assert names(join_short_clips(clips("a", "a", "a", "a"), [0.94, 0.95, 0.95, 0.95], 2.0)) == ["0+1+2+3"]
    assert names(join_short_clips(clips("a", "a"), [0.5, 0.5], 2.0)) == ["0+1"], "too short together, but one item"


def test_segments_of_a_file_join_only_each_other() -> None:
    pieces = [Utterance(f"{n}", path, n, n + 1, speaker="a") for n, path in enumerate(["x", "x", "y", "z", "y", "w"])]
    assert names(join_short_clips(pieces, [1.0] * 6, 2.0)) == ["0+1", "2+4", "3+5"]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0.1, 4.0)), min_size=1, max_size=40))
def test_joining_loses_no_clip_and_mixes_no_speakers(drawn: list[tuple[str, float]]) -> None:
    utterances = clips(*(speaker for speaker, _ in drawn))
    items = join_short_clips(utterances, [length for _, length in drawn], 2.0)
    assert sorted(map(int, chain(*(name.split("+") for name in names(items))))) == list(range(len(drawn)))
    assert all(len({utterance.speaker for utterance in item}) == 1 for item in items)
    short = [item for item in items if sum(drawn[int(utterance.name)][1] + 0.1 for utterance in item) - 0.1 < 2.0]
    assert len(short) <= len({item[0].speaker for item in short})


def test_tasks_are_even_and_keep_files_whole() -> None:
    items = [[Utterance(f"f{file}@{part}", f"f{file}", part, part + 1)] for file in range(40) for part in range(10)]
    tasks = cut_tasks(items, [36.0] * 400, seed=1, source="s", task_hours=1.0)
    assert [len(task) for task in tasks] == [100] * 4
    paths = [{item[0].path for item in task} for task in tasks]
    assert sum(map(len, paths)) == 40
    assert tasks != cut_tasks(items, [36.0] * 400, seed=2, source="s", task_hours=1.0)
    assert len(cut_tasks(items, [0.0] * 400, seed=1, source="s", task_hours=1.0)) == 1


def test_a_task_list_grows_without_changing_its_lines(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    utterances = [Utterance("ä\udcff", "ä\udcff.wav", 1.5, 2.5, "s", "r", "t", "de", {"x": [1]}), Utterance("b", "b.wav")]
    append_tasks(path, [[utterances]], 0)
    before = path.read_bytes()
    append_tasks(path, [[[utterances[0]]], [[utterances[1]]]], 1, {"b"})
    assert path.read_bytes().startswith(before)
    tasks = [read_task(path, line) for line in task_lines(path)]
    assert [task.items for task in tasks] == [[utterances], [[utterances[0]]], [[utterances[1]]]]
    assert [task.again for task in tasks] == [[], [], ["b"]]


def test_a_damaged_task_list_is_read_or_refused_in_a_sentence_with_its_line(tmp_path: Path) -> None:
    path, random = tmp_path / "tasks.jsonl", np.random.default_rng(0)
    items = [[[Utterance(f"u{n}", f"{n}.wav", 1.5, 2.5, "s", "r", "t", "de", {"x": [1]}, 1)] for n in range(2)]]
    append_tasks(path, items, 0, {"u1"})
    sound = path.read_bytes()
    changes = [(place, byte) for place in range(len(sound)) for byte in random.integers(0, 256, 1, dtype=np.uint8).tobytes()]
    refused = 0
    for place, byte in changes:
        path.write_bytes(sound[:place] + bytes([byte]) + sound[place + 1 :])
        for line in task_lines(path):
            try:
                read_task(path, line)
            except ValueError as error:
                refused += 1
                assert str(error).startswith(f"{path}, line {line.number + 1} is damaged: prepare the corpus again")
    assert refused > len(changes) / 3
    for text in (b"[" * 100_000, b"[]", b'{"task": 0, "items": [[]], "again": []}', b'{"task": 0, "items": [[{}]], "again": []}'):
        path.write_bytes(text)
        with pytest.raises(ValueError, match=r"tasks\.jsonl, line 1 is damaged"):
            read_task(path, task_lines(path)[0])


def test_keys_are_plain_stable_and_different() -> None:
    key = utterance_key("set", "spk.1/utt.é 01")
    assert key == "utt_01-3ad0e65c70d509a2"
    assert key != utterance_key("set", "spk.2/utt.é 01") != utterance_key("other", "spk.2/utt.é 01")
    assert len(utterance_key("s", "x" * 500)) < 90


def test_a_folder_is_listed_in_order_with_speakers_from_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "b/x.FLAC", "a/s/y.wav", "a/z.m4a", "a/notes.txt", ".hidden/q.wav", "a/._x.wav")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    found = list(folder_utterances(tmp_path, find_files(tmp_path).audio, speaker_folder=1, language="de"))
    assert [(u.name, u.path, u.speaker, u.recording) for u in found] == [
        ("a/z", "a/z.m4a", "a", "a/z"),
        ("a/s/y", "a/s/y.wav", "a", "a/s/y"),
        ("b/x", "b/x.FLAC", "b", "b/x"),
    ]
    assert {u.language for u in found} == {"de"}
    assert [u.name for u in folder_utterances(tmp_path, find_files(tmp_path, ["b"]).audio)] == ["b/x"]
    with pytest.raises(ValueError, match="with speaker_folder=2 every file needs"):
        list(folder_utterances(tmp_path, find_files(tmp_path).audio, speaker_folder=2))
    with pytest.raises(ValueError, match="sub-folder c does not exist"):
        find_files(tmp_path, ["c"])


def test_librispeech_gives_readers_chapters_and_transcripts(tmp_path: Path) -> None:
    touch(tmp_path, "dev/19/198/19-198-0000.flac", "dev/19/198/19-198-0001.flac", "dev/20/1/20-1-0000.flac")
    (tmp_path / "dev/19/198/19-198.trans.txt").write_text("19-198-0000 IT'S A \n19-198-0001 B\n")
    found = list(librispeech_utterances(tmp_path, find_files(tmp_path).audio, Counter()))
    assert [(u.speaker, u.recording, u.text, u.language) for u in found] == [
        ("19", "19-198", "IT'S A", "en"),
        ("19", "19-198", "B", "en"),
        ("20", "20-1", "", "en"),
    ]
    touch(tmp_path, "dev/other.flac")
    with pytest.raises(ValueError, match=r"but found dev/other.flac: use layout=folder"):
        list(librispeech_utterances(tmp_path, find_files(tmp_path).audio, Counter()))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("m.tsv", "file\tspeaker\tbegin\tend_s\ttext\tsource\na/x.wav\t-\t1.5\t2.5\tit's \"so\tweb\nb.wav\tann\t\t\t\t\n"),
        ("m.csv", 'file,speaker,begin,end_s,text,source\na/x.wav,-,1.5,2.5,"it\'s ""so",web\nb.wav,ann,,,,\n'),
        (
            "m.jsonl",
            '{"file": "a/x.wav", "begin": 1.5, "end_s": 2.5, "text": "it\'s \\"so", "source": "web"}\n\n'
            '{"file": "b.wav", "speaker": "ann", "begin": null, "source": ""}\n',
        ),
    ],
)
def test_manifests_of_all_kinds_say_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    found = list(
        manifest.utterances(tmp_path / name, columns={"path": "file", "start_s": "begin", "speaker": None}, language="en")
    )
    first = Utterance("a/x@1.500-2.500", "a/x.wav", 1.5, 2.5, "", "a/x", "it's \"so", "en", {"source": "web"})
    assert found == [first, Utterance("b", "b.wav", speaker="ann", recording="b", language="en", extra={"source": ""})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("m.tsv", b"file\nx.wav\n", r"line 2: there is no column 'path' among 'file': name the columns"),
        ("m.tsv", b"path\tspeaker\nx.wav\n", "line 2: 1 cells under 2 columns"),
        ("m.tsv", b"path\tstart_s\nx.wav\tsoon\n", "start_s must be a number of seconds, but is 'soon'"),
        ("m.tsv", b"path\tstart_s\tend_s\nx.wav\t3\t2\n", "0 ≤ start_s < end_s, but has 3 and 2"),
        ("m.tsv", b"path\tspeaker\n\tann\n", "the path is empty"),
        ("m.tsv", b"path\n\xff.wav\n", "is not UTF-8"),
        ("m.jsonl", b'{"path": "x"}\n{"path"\n', "line 2: not valid JSON"),
        ("m.jsonl", b"[1]\n", "one JSON object, but this is a list"),
        ("m.txt", b"path\n", "ends in .tsv, .csv or .jsonl"),
    ],
)
def test_a_malformed_manifest_is_refused_with_its_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(manifest.utterances(tmp_path / name))


@pytest.mark.parametrize(
    ("cells", "name", "start_s", "end_s", "language"),
    [
        ("a/x.wav\t1.5\t2.25\t", "a/x@1.500-2.250", 1.5, 2.25, "de"),
        ("a/x.wav\t0\t2.25\ten", "a/x@0.000-2.250", 0.0, 2.25, "en"),
        ("a/x.wav\t1.5\t-\t", "a/x@1.500-", 1.5, None, "de"),
        ("a/x.wav\t\t\t", "a/x", 0.0, None, "de"),
    ],
)
def test_a_row_of_a_manifest_is_a_segment_of_its_file(
    tmp_path: Path, cells: str, name: str, start_s: float, end_s: float | None, language: str
) -> None:
    (tmp_path / "m.tsv").write_text(f"path\tstart_s\tend_s\tlanguage\n{cells}\n")
    (found,) = manifest.utterances(tmp_path / "m.tsv", language="de")
    assert (found.name, found.path, found.start_s, found.end_s, found.language) == (name, "a/x.wav", start_s, end_s, language)
    assert found.recording == "a/x", "segments of a file are of one recording"


@pytest.mark.parametrize("cells", ["2\t2", "2\t1", "-1\t2", "0\t0", "nan\t2", "1\tinf"])
def test_a_segment_without_a_length_is_refused(tmp_path: Path, cells: str) -> None:
    (tmp_path / "m.tsv").write_text(f"path\tstart_s\tend_s\nx.wav\t{cells}\n")
    with pytest.raises(ValueError, match="line 2"):
        list(manifest.utterances(tmp_path / "m.tsv"))


def test_two_utterances_of_one_name_are_refused(tmp_path: Path) -> None:
    touch(tmp_path, "a/x.wav", "a/x.flac")
    with pytest.raises(ValueError, match=r"a/x.flac and a/x.wav are both 'a/x': remove or rename"):
        list_corpus(tmp_path, {"layout": "folder", "language": "", "speaker_folder": 0})


def test_an_empty_or_missing_corpus_is_refused(tmp_path: Path) -> None:
    touch(tmp_path, "readme.txt")
    chosen = {"layout": "folder", "language": "", "speaker_folder": 0}
    with pytest.raises(ValueError, match=r"there is no recording in .* \(\.txt 1\): looked for \.3g2, "):
        list_corpus(tmp_path, chosen)
    with pytest.raises(ValueError, match="does not exist: give input=FOLDER"):
        list_corpus(tmp_path / "absent", chosen)
    with pytest.raises(ValueError, match="does not exist: give input=FILE"):
        list_corpus(tmp_path / "absent.tsv", {"layout": "manifest", "language": "", "columns": {}})
    (tmp_path / "m.tsv").write_text("path\tspeaker\n")
    with pytest.raises(ValueError, match=r"m\.tsv has no rows: give one line per utterance"):
        list_corpus(tmp_path / "m.tsv", {"layout": "manifest", "language": "", "columns": {}})


def test_task_lines_are_valid_json(tmp_path: Path) -> None:
    append_tasks(tmp_path / "tasks.jsonl", [[clips("a")]], 0)
    assert json.loads((tmp_path / "tasks.jsonl").read_text())["task"] == 0
