"""Alignment files of every format give the same table; what is wrong in one is named with its line."""

from pathlib import Path

import pytest

from openwavlm.audio.formats import EXTENSIONS
from openwavlm.evaluation.phones.alignment_files import FORMATS, read_alignments
from openwavlm.evaluation.phones.alignments import FOLDINGS, Segment, folded
from openwavlm.evaluation.phones.textgrid import read_textgrid

SAID = [Segment(0.0, 0.25, "sil"), Segment(0.25, 0.5, "HH"), Segment(0.5, 1.0, "AH0")]


def long_textgrid(tiers: dict[str, list[Segment]]) -> str:
    text = (
        f'File type = "ooTextFile"\nObject class = "TextGrid"\n\nxmin = 0 \nxmax = 1 \ntiers? <exists> \nsize = {len(tiers)} \n'
    )
    text += "item []: \n"
    for number, (name, segments) in enumerate(tiers.items(), start=1):
        text += f'    item [{number}]:\n        class = "IntervalTier" \n        name = "{name}" \n        xmin = 0 \n        xmax = 1 \n'
        text += f"        intervals: size = {len(segments)} \n"
        for place, (start_s, end_s, phone) in enumerate(segments, start=1):
            text += f"        intervals [{place}]:\n            xmin = {start_s} \n            xmax = {end_s} \n"
            text += f'            text = "{phone}" \n'
    return text


def short_textgrid(tiers: dict[str, list[Segment]]) -> str:
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "0", "1", "<exists>", str(len(tiers))]
    for name, segments in tiers.items():
        lines += ['"IntervalTier"', f'"{name}"', "0", "1", str(len(segments))]
        lines += [f'{start_s}\n{end_s}\n"{phone}"' for start_s, end_s, phone in segments]
    return "\n".join(lines) + "\n"


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding=encoding)
    return path


def written(folder: Path, file_format: str) -> Path:
    """`SAID` as the alignment of `spk/utt` in a file of that format."""
    if file_format == "tsv":
        lines = [f"spk/utt.flac\t{start_s}\t{end_s}\t{phone}" for start_s, end_s, phone in SAID]
        return write(folder, "a.tsv", "path\tstart\tend\tphone\n" + "\n".join(lines))
    if file_format == "textgrid":
        write(folder, "grids/spk/utt.TextGrid", long_textgrid({"words": SAID[:1], "spk - phones": SAID}))
        return folder / "grids"
    if file_format == "ctm":
        lines = [f"spk/utt 1 {start_s} {end_s - start_s} {phone} 0.9" for start_s, end_s, phone in SAID]
        return write(folder, "a.ctm", ";; by an aligner\n" + "\n".join(reversed(lines)) + "\n")
    if file_format == "librispeech":
        return write(folder, "a.alignment.txt", 'spk/utt "sil,HH,AH0" "0.25,0.5,1.0"\n')
    write(folder, "timit/spk/utt.PHN", "0 4000 sil\n4000 8000 HH\n8000 16000 AH0\n")
    return folder / "timit"


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("named", [False, True])
def test_every_format_gives_the_same_segments(tmp_path: Path, file_format: str, named: bool) -> None:
    tier = "words" if file_format == "librispeech" else "phones"
    path = written(tmp_path, file_format)
    table = read_alignments(path, file_format=file_format if named else "auto", tier=tier)
    assert list(table) == ["spk/utt"] and len(table) == 1 and table["spk/utt"] == SAID


@pytest.mark.parametrize("form", [long_textgrid, short_textgrid])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_both_forms_of_a_textgrid_give_the_named_tier(tmp_path: Path, form, encoding: str) -> None:
    quoted = Segment(0.0, 1.0, 'so ""so"" 3 <x>')
    path = write(tmp_path, "a.TextGrid", form({"words": [quoted], "S1 - phones": SAID}), encoding)
    assert read_textgrid(path) == SAID
    assert read_textgrid(path, "words") == [(0.0, 1.0, 'so "so" 3 <x>')]
    with pytest.raises(ValueError, match=r"one interval tier 'tones', but 0 of its tiers"):
        read_textgrid(path, "tones")


@pytest.mark.parametrize("form", [long_textgrid, short_textgrid])
def test_spaces_around_names_of_phones_and_tiers_are_none_of_theirs(tmp_path: Path, form) -> None:
    padded = [segment._replace(phone=f" {segment.phone}\t") for segment in SAID] + [Segment(1.0, 2.0, "  ")]
    path = write(tmp_path, "a.TextGrid", form({" phones ": padded}))
    assert read_textgrid(path) == [*SAID, Segment(1.0, 2.0, "")]


def test_a_tier_is_found_by_the_end_of_its_name_alone(tmp_path: Path) -> None:
    tiers = {"phones before correction": SAID[:1], "ann - phones": SAID, "phones2": SAID[1:]}
    assert read_textgrid(write(tmp_path, "a.TextGrid", long_textgrid(tiers))) == SAID


def test_a_textgrid_with_points_beside_intervals_is_read(tmp_path: Path) -> None:
    text = short_textgrid({"phones": SAID}).replace(
        "<exists>\n1\n", '<exists>\n2\n"TextTier"\n"tones"\n0\n1\n2\n0.1\n"H"\n0.2\n"L"\n'
    )
    assert read_textgrid(write(tmp_path, "a.TextGrid", text)) == SAID


def test_two_speakers_phones_in_one_textgrid_are_refused_and_each_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, "a.TextGrid", long_textgrid({"ann - phones": SAID, "bob - phones": SAID[1:]}))
    with pytest.raises(ValueError, match="2 of its tiers"):
        read_textgrid(path)
    assert read_textgrid(path, "bob - phones") == SAID[1:]


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        (
            "a.TextGrid",
            long_textgrid({"phones": SAID})[:-30],
            r"a TextGrid has an interval's text here, but line 25 of .*a\.TextGrid",
        ),
        ("a.TextGrid", long_textgrid({"phones": SAID}).replace("xmax = 0.5", 'xmax = "?"'), r"line 21 of .* has '\?'"),
        ("a.TextGrid", '"ooTextFile"\n"Pitch 1"\n', r"but .*a\.TextGrid with \('ooTextFile', 'Pitch 1'\)"),
        ("a.TextGrid", "ooBinaryFile\x08TextGrid", "is a binary one: save it as text"),
        ("a.ctm", "u 1 0.0 0.5 AH\nu 1 0.5 AH\n", r"line 2 of .*a\.ctm is 'u 1 0\.5 AH'"),
        ("a.ctm", "u 1 0.5 -0.1 AH\n", r"line 1 of .*a\.ctm has one from 0\.5 to 0\.4 s"),
        ("a.phn", "0 100 h#\n100 x y\n", r"line 2 of .*a\.phn is '100 x y'"),
        ("a.phn", "200 100 h#\n", r"line 1 of .*a\.phn has one from"),
        ("a.alignment.txt", 'u ",A," "0.1,0.2,0.3"\nv "A,B" "0.1"\n', r"line 2 of .*a\.alignment\.txt"),
        ("a.tsv", "path\tstart\tend\tphone\nu\t0\t1\n", r"line 2 of .*a\.tsv"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(ValueError, match=sentence) as refusal:
        list(read_alignments(path, tier="words" if "txt" in name else "phones").values())
    assert "\n" not in str(refusal.value)


def test_condensed_alignments_have_words_and_say_so(tmp_path: Path) -> None:
    path = written(tmp_path, "librispeech")
    with pytest.raises(ValueError, match=r"has words, no phones, .* set tier=words"):
        read_alignments(path)


def test_channels_of_a_recording_are_recordings_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path, "a.ctm", "call A 0 1 a\ncall B 0 1 b\nmono 1 0 1 c\n")
    assert {name: [s.phone for s in of] for name, of in read_alignments(path).items()} == {
        "call-A": ["a"],
        "call-B": ["b"],
        "mono": ["c"],
    }


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("a.ctm", [";; of an aligner", "", ";take 1 0 0.5 a 0.9", "  ", ";take 1 0.5 0.25 b", ";;take 1 0.75 1 c"]),
        ("a.tsv", ["path\tstart\tend\tphone\tscore", ";take\t0.5\t0.75\tb\t1", ";take\t0\t0.5\ta\t2"]),
        ("a.alignment.txt", ["", ';take "a,b" "0.5,0.75"', " "]),
        (";take.phn", ["0 8000 a", "", "8000 12000 b", " "]),
    ],
)
@pytest.mark.parametrize(("start", "end"), [("", "\n"), ("\ufeff", "\r\n")])
def test_empty_lines_comments_byte_order_marks_and_line_ends_are_no_phones(
    tmp_path: Path, name: str, lines: list[str], start: str, end: str
) -> None:
    if name == "a.tsv" and start:
        start = ""  # a table of one's own is plain UTF-8
    (tmp_path / name).write_bytes((start + "".join(line + end for line in lines)).encode())
    table = read_alignments(tmp_path / name, tier="words" if "txt" in name else "phones")
    assert dict(table) == {";take": [Segment(0.0, 0.5, "a"), Segment(0.5, 0.75, "b")]}


@pytest.mark.parametrize("ending", [*sorted(EXTENSIONS), *sorted(ending.upper() for ending in EXTENSIONS), ".Wav"])
def test_a_table_names_recordings_with_or_without_the_audios_ending(tmp_path: Path, ending: str) -> None:
    names = [f"a/b.c{ending}", "a/d.e", "f", f"g{ending}.x"]
    rows = [f"{name}\t0\t1\t{place}" for place, name in enumerate(names)]
    path = write(tmp_path, "a.tsv", "path\tstart\tend\tphone\n" + "\n".join(rows))
    assert ".flac" in EXTENSIONS and ".wav" in EXTENSIONS
    assert {name: of[0].phone for name, of in read_alignments(path).items()} == {
        "a/b.c": "0",
        "a/d.e": "1",
        "f": "2",
        f"g{ending}.x": "3",
    }


@pytest.mark.parametrize(("case", "file_format"), [("upper", "auto"), ("upper", "named"), ("lower", "auto")])
@pytest.mark.parametrize("kind", FORMATS)
def test_endings_count_in_any_case(tmp_path: Path, case: str, file_format: str, kind: str) -> None:
    given = written(tmp_path, kind)
    path = next(file for file in (given.rglob("*") if given.is_dir() else [given]) if file.is_file())
    stem, ending = path.name.split(".", 1)
    renamed = path.rename(path.with_name(f"{stem}.{ending.upper() if case == 'upper' else ending.lower()}"))
    tier = "words" if kind == "librispeech" else "phones"
    found = read_alignments(
        given if given.is_dir() else renamed, file_format=kind if file_format == "named" else "auto", tier=tier
    )
    assert dict(found) == {"spk/utt": SAID}


def test_a_named_format_takes_its_files_of_a_folder_or_else_all(tmp_path: Path) -> None:
    write(tmp_path, "one/a.ctm", "u 1 0 1 x\n")
    write(tmp_path, "one/b.txt", "v 1 0 1 y\n")
    write(tmp_path, "one/deep/c.ctm", "w 1 0 1 z\n")
    assert set(read_alignments(tmp_path / "one", file_format="ctm")) == {"u", "w"}
    assert set(read_alignments(tmp_path / "one")) == {"u", "w"}, "files without a known ending are none"
    (tmp_path / "one" / "a.ctm").unlink()
    (tmp_path / "one" / "deep" / "c.ctm").rename(tmp_path / "one" / "c.words")
    assert set(read_alignments(tmp_path / "one", file_format="ctm")) == {"v", "w"}
    assert set(read_alignments(tmp_path / "one" / "b.txt", file_format="ctm")) == {"v"}


def test_files_of_a_folder_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    written(tmp_path, "textgrid")
    write(tmp_path, "grids/spk/broken.TextGrid", "nothing")
    table = read_alignments(tmp_path / "grids")
    assert set(table) == {"spk/utt", "spk/broken"} and table["spk/utt"] == SAID
    with pytest.raises(ValueError, match=r"broken\.TextGrid"):
        table["spk/broken"]


def test_what_cannot_be_told_is_refused(tmp_path: Path) -> None:
    written(tmp_path, "ctm")
    written(tmp_path, "tsv")
    with pytest.raises(ValueError, match="has ctm and tsv: set format="):
        read_alignments(tmp_path)
    assert list(read_alignments(tmp_path, file_format="ctm")) == ["spk/utt"]
    with pytest.raises(ValueError, match="has no file with a known ending"):
        read_alignments(write(tmp_path, "a.xyz", ""))
    with pytest.raises(ValueError, match="does not exist"):
        read_alignments(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is 'mfa'"):
        read_alignments(tmp_path, file_format="mfa")
    write(tmp_path, "b.ctm", "spk/utt 1 0 1 x\n")
    with pytest.raises(ValueError, match=r"one alignment, but 'spk/utt' of .*b\.ctm was in an earlier file"):
        read_alignments(tmp_path, file_format="ctm")


def phones(folding: str, *names: str) -> list[str]:
    return [segment.phone for segment in folded([Segment(0, 1, name) for name in names], folding)]


def test_stress_positions_and_silences_fold_and_nothing_else() -> None:
    assert phones("arpabet", "AH0", "ah", "AH1_B", "AH2", "B", "cpc10", "iː") == ["ah", "ah", "ah", "ah", "b", "cpc10", "iː"]
    assert set(phones("arpabet", "", "SIL", "sp", "spn", "<eps>", "h#", "sil_S", "pau")) == {"sil"}
    assert phones("none", "AH0", "", "sp") == ["AH0", "", "sp"]
    with pytest.raises(ValueError, match=f"one of {', '.join(FOLDINGS)}, but is 'ipa'"):
        phones("ipa", "a")


# Garofolo et al. (1993), the 61 symbols of TIMIT's transcriptions.
TIMIT = (
    "iy ih eh ey ae aa aw ay ah ao oy ow uh uw ux er ax ix axr ax-h b d g p t k dx q jh ch s sh z zh f th v dh m n ng em en eng nx "
    "l r w y hh hv el bcl dcl gcl pcl tcl kcl pau epi h#"
)


def test_timits_61_phones_become_39() -> None:
    assert len(TIMIT.split()) == 61
    assert len(set(phones("timit39", *TIMIT.split()))) == 39 and "q" not in phones("timit39", *TIMIT.split())
    assert phones("timit39", "ix", "zh", "bcl", "axr", "nx") == ["ih", "sh", "sil", "er", "n"]
