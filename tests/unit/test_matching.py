"""Rows find their alignments whatever folder a shard set was made from; what two could claim nobody gets."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from openwavlm.evaluation.phones.alignments import Segment
from openwavlm.evaluation.phones.matching import Clip, Matches, match_rows
from openwavlm.evaluation.shard_sets import judged_set, probe_set, speech_set
from openwavlm.shards.index import Index
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.reader import read_fields
from synthetic import speech_like, write_speech_like


def matched(index: Index, names: list[str], **settings: bool) -> tuple[dict[str, str], Matches]:
    """Key of each matched row (without its hash) → names of its alignments."""
    matches = match_rows(index, names, **settings)
    found = {index.keys[row][:-17]: "+".join(clip.name for clip in clips) for row, clips in matches.clips.items()}
    return found, matches


@pytest.fixture(scope="module")
def librispeech(tmp_path_factory: pytest.TempPathFactory) -> Index:
    """Two utterances of one chapter and one of another, in LibriSpeech's layout: rows of one chapter share a `recording`."""
    folder = tmp_path_factory.mktemp("librispeech")
    for name in ("84/121/84-121-0000", "84/121/84-121-0001", "85/9/85-9-0000"):
        write_speech_like(folder / "corpus" / "dev-clean" / f"{name}.flac", 2.5, seed=len(name), speaker=name[:2])
    make_shards(input=folder / "corpus", output=folder / "shards", layout="librispeech", source="ls")
    return Index.open(folder / "shards")


@pytest.mark.parametrize("prefix", ["dev-clean/84/121/", "LibriSpeech/dev-clean/84/121/", "84/121/", ""])
def test_utterances_are_found_by_their_path_or_a_part_of_it(librispeech: Index, prefix: str) -> None:
    names = [f"{prefix}84-121-0000", f"{prefix}84-121-0001"]
    found, matches = matched(librispeech, [*names, "86/1/86-1-0000"])
    assert found == dict(zip(("84-121-0000", "84-121-0001"), names, strict=True))
    assert (len(matches.unknown), matches.ambiguous, matches.unused) == (1, [], ["86/1/86-1-0000"])


def test_only_the_named_rows_are_looked_up(librispeech: Index) -> None:
    names = ["84-121-0000", "84-121-0001", "85-9-0000"]
    for row in range(3):
        matches = match_rows(librispeech, names, [row])
        assert list(matches.clips) == [row] and len(matches.unused) == 2 and not matches.unknown


def test_times_of_a_chapter_fit_none_of_its_utterances(librispeech: Index) -> None:
    found, matches = matched(librispeech, ["84-121"])
    assert found == {} and len(matches.ambiguous) == 2
    found, _ = matched(librispeech, ["85-9"])
    assert found == {"85-9-0000": "85-9"}, "a chapter of one utterance is that utterance"


@pytest.mark.parametrize("other_first", [False, True])
def test_a_whole_name_beats_the_end_of_a_longer_one(librispeech: Index, other_first: bool) -> None:
    for name, key in (("85-9", "85-9-0000"), ("dev-clean/84/121/84-121-0001", "84-121-0001")):  # by the recording, by the key
        names = [f"elsewhere/{name}", name] if other_first else [name, f"elsewhere/{name}"]
        found, matches = matched(librispeech, names)
        assert found == {key: name} and matches.unused == [f"elsewhere/{name}"]
        found, matches = matched(librispeech, [f"here/{name}", f"elsewhere/{name}"])
        assert found == {} and len(matches.ambiguous) == 1


def test_too_many_without_an_alignment_are_refused_with_the_numbers(librispeech: Index) -> None:
    matches = match_rows(librispeech, ["84-121-0000", "other"])
    matches.check(0.7, "here")
    with pytest.raises(
        ValueError, match=r"share of 0\.5 of the recordings of here .* 2 of 3 do .* 1 alignments belong to none \(other\)"
    ):
        matches.check(0.5, "here")
    with pytest.raises(ValueError, match="3 of 3 do"):
        match_rows(librispeech, ["other"]).check(1.0, "here")


@pytest.fixture(scope="module")
def timit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two speakers who read the same two sentences, as TIMIT calls them; short ones are joined."""
    folder = tmp_path_factory.mktemp("timit")
    for place, name in enumerate(("DR1/ANN/SA1", "DR1/ANN/SA2", "DR2/BOB/SA1", "DR2/BOB/SA2")):
        write_speech_like(folder / "corpus" / f"{name}.wav", 0.8 + 0.2 * place, seed=place, speaker=name[:7])
    make_shards(input=folder / "corpus", output=folder / "joined", speaker_folder=2, source="timit")
    make_shards(input=folder / "corpus", output=folder / "apart", speaker_folder=2, source="timit", min_seconds=0.5)
    return folder


NAMES = ["TIMIT/DR1/ANN/SA1", "TIMIT/DR1/ANN/SA2", "TIMIT/DR2/BOB/SA1", "TIMIT/DR2/BOB/SA2"]


def test_equal_file_names_are_told_apart_by_their_folders(timit: Path) -> None:
    index = Index.open(timit / "apart")
    matches = match_rows(index, NAMES)
    assert {index.recordings[int(index.recording[row])]: clips[0].name for row, clips in matches.clips.items()} == {
        f"timit/{name[6:]}": name for name in NAMES
    }
    alone = match_rows(index, ["SA1", "SA2"])
    assert alone.clips == {} and len(alone.ambiguous) == 4, "which of two is meant cannot be told"
    doubled = match_rows(index, ["one/SA1", "two/SA1"])
    assert doubled.clips == {} and len(doubled.ambiguous) == 2 and len(doubled.unknown) == 2


def test_clips_of_a_joined_row_bring_their_alignments_to_their_places(timit: Path) -> None:
    index = Index.open(timit / "joined")
    assert len(index) < 4
    matches = match_rows(index, NAMES)
    placed = {clip.name: (row, clip) for row, clips in matches.clips.items() for clip in clips}
    assert set(placed) == set(NAMES)
    for row in np.unique(index.members["row"]):
        of_row = [clip for at, clip in placed.values() if at == row]
        offsets = index.members["offset"][index.members["row"] == row]
        assert sorted(clip.offset for clip in of_row) == offsets.tolist()
    assert match_rows(index, NAMES, joined=False).clips.keys().isdisjoint(index.members["row"].tolist())


def test_probes_leave_joined_rows_out(timit: Path, tmp_path: Path) -> None:
    times = {name: [Segment(0, 9, "a")] for name in NAMES}
    index = Index.open(timit / "joined")
    alone = set(range(len(index))) - set(index.members["row"].tolist())
    if alone:
        assert len(probe_set(timit / "joined", times, ("a",))) == len(alone)
    else:
        with pytest.raises(ValueError, match="has phone times"):
            probe_set(timit / "joined", times, ("a",))
    assert len(probe_set(timit / "apart", times, ("a",))) == 4


def test_segments_of_a_clip_move_to_the_rows_time_and_are_cut() -> None:
    clip = Clip("x", offset=16_000, num_samples=8_000, start_s=10.0)
    said = [Segment(9.0, 10.1, "a"), Segment(10.1, 10.3, "b"), Segment(10.4, 12.0, "c"), Segment(12.0, 13.0, "d")]
    assert clip.segments(said) == [
        (1.0, pytest.approx(1.1), "a"),
        (pytest.approx(1.1), pytest.approx(1.3), "b"),
        (pytest.approx(1.4), 1.5, "c"),
    ]


def test_pieces_of_a_long_recording_get_their_part_of_its_alignment(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", speech_like(9.0), 16_000)
    manifest = tmp_path / "talk.tsv"
    manifest.write_text("path\tspeaker\tstart_s\tend_s\ntalk.wav\tann\t0\t3\ntalk.wav\tann\t4\t8\n")
    make_shards(input=manifest, layout="manifest", output=tmp_path / "shards", source="talk")
    index = Index.open(tmp_path / "shards")
    # A phone for every second: "s0" … "s8".
    times = {"talk": [Segment(second, second + 1, f"s{second}") for second in range(9)]}
    judged = judged_set(tmp_path / "shards", np.arange(len(index)), times)
    heard = {
        read_fields(index, row)["start_s"]: [s.phone for s in of] for row, of in zip(judged.rows, judged.segments, strict=True)
    }
    assert heard == {0.0: ["s0", "s1", "s2"], 4.0: ["s4", "s5", "s6", "s7"]}
    for utterance, of in zip(judged.utterances.utterances, judged.segments, strict=True):
        frame_names = [judged.utterances.inventory[phone] for phone in utterance.phones]
        assert frame_names[0] == of[0].phone and frame_names[-1] == of[-1].phone and frame_names[60] == of[1].phone


def test_an_alignment_of_a_clips_own_name_begins_with_the_clip_wherever_the_clip_lay_in_its_recording(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "talk.wav", speech_like(9.0), 16_000)
    manifest = tmp_path / "talk.tsv"
    manifest.write_text("path\tspeaker\tstart_s\tend_s\ntalk.wav\tann\t1\t3\ntalk.wav\tann\t4\t8\n")
    make_shards(input=manifest, layout="manifest", output=tmp_path / "shards", source="talk")
    index = Index.open(tmp_path / "shards")
    starts = {read_fields(index, row)["start_s"]: row for row in range(len(index))}
    own = "talk@1.000-3.000"
    found = match_rows(index, [own, "talk"]).clips
    assert {row: clip.start_s for row, (clip,) in found.items()} == {starts[1.0]: 0.0, starts[4.0]: 4.0}
    assert {row: clip.name for row, (clip,) in found.items()} == {starts[1.0]: own, starts[4.0]: "talk"}


def test_judged_rows_are_taken_in_turn_and_listeners_by_hash(timit: Path) -> None:
    index = Index.open(timit / "apart")
    times = {name: [Segment(0, 0.5, "a"), Segment(0.5, 0.6, "sil")] for name in NAMES}
    everything = judged_set(timit / "apart", np.arange(4), times)
    assert everything.utterances.inventory == ("a", "sil") and len(everything.rows) == 4
    fewer = judged_set(timit / "apart", np.arange(4), times, seconds=2.4, with_silence=False)
    assert fewer.utterances.speakers == everything.utterances.speakers and len(fewer.rows) == 2
    assert fewer.utterances.inventory == ("a",)
    drawn = speech_set(timit / "apart", np.arange(4), 2.0, ("a",))
    assert len(drawn) < 4 and all((utterance.phones == -1).all() for utterance in drawn.utterances)
    assert [u.name for u in drawn.utterances] == [
        u.name for u in speech_set(timit / "apart", np.arange(4), 2.0, ("a",)).utterances
    ]
    with pytest.raises(ValueError, match="no frame has a phone"):
        judged_set(timit / "apart", np.arange(4), {name: [Segment(90, 91, "a")] for name in NAMES})
    with pytest.raises(ValueError, match=r"no row of other speakers left: set fit=DIR"):
        speech_set(timit / "apart", np.arange(0), 2.0, ("a",))
    many = {name: [Segment(i / 4000, (i + 1) / 4000, f"{name}{i}") for i in range(2000)] for name in NAMES}
    with pytest.raises(ValueError, match="at most 1000 phones"):
        judged_set(timit / "apart", np.arange(4), many)
    assert index.path == timit / "apart"
