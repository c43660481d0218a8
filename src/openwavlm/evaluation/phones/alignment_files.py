"""Alignment files of every format (docs/data.md) as one table: recording → segments in seconds."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from openwavlm.audio.formats import EXTENSIONS
from openwavlm.audio.frames import SAMPLE_RATE_HZ
from openwavlm.evaluation.phones.alignments import Segment
from openwavlm.evaluation.phones.textgrid import read_textgrid

FORMATS = ("tsv", "textgrid", "ctm", "librispeech", "phn")
_ENDINGS = {".tsv": "tsv", ".textgrid": "textgrid", ".ctm": "ctm", ".alignment.txt": "librispeech", ".phn": "phn"}
_WORDS = frozenset({"words", "word"})
_CONDENSED = re.compile(r'(\S+) "([^"]*)" "([^"]*)"')

Table = dict[str, list[Segment]]


class Alignments(Mapping[str, list[Segment]]):
    """Segments by recording, each read by its own function at its access."""

    def __init__(self, readers: Mapping[str, Callable[[], list[Segment]]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> list[Segment]:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_alignments(path: Path | str, *, file_format: str = "auto", tier: str = "phones") -> Alignments:
    """Opens a file, or all files of a folder at any depth.

    Args:
        file_format: One of `FORMATS`, or `auto`: by the files' endings.
        tier: Tier of a TextGrid. The condensed LibriSpeech-alignments have words only, so they need `words`.

    Raises:
        ValueError: If the format is unknown, there is no such file or there are several formats, a recording is in two files, or a
            file that holds many recordings has a line that is not of its format.
    """
    path = Path(path)
    if file_format not in (*FORMATS, "auto"):
        raise ValueError(f"an alignment's format is auto or one of {', '.join(FORMATS)}, but is {file_format!r}")
    if not path.exists():
        raise ValueError(f"alignments must be a file or a folder, but {path} does not exist")
    root = path if path.is_dir() else path.parent
    readers: dict[str, Callable[[], list[Segment]]] = {}
    for file, kind in _files(path, file_format):
        name = file.relative_to(root).with_suffix("").as_posix()
        more: dict[str, Callable[[], list[Segment]]]
        if kind == "textgrid":
            more = {name: partial(read_textgrid, file, tier)}
        elif kind == "phn":
            more = {name: partial(read_phn, file)}
        else:
            more = {name: segments.copy for name, segments in _TABLES[kind](file, tier).items()}
        twice = [name for name in more if name in readers]
        if twice:
            raise ValueError(
                f"a recording has one alignment, but {twice[0]!r} of {file} was in an earlier file too: remove one of them"
            )
        readers |= more
    return Alignments(readers)


def _files(path: Path, file_format: str) -> list[tuple[Path, str]]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    kinds = [(file, kind) for file in files for ending, kind in _ENDINGS.items() if file.name.lower().endswith(ending)]
    if file_format != "auto":
        # A single file has the named format; in a folder, files with its ending have it, else all files.
        return [(file, kind) for file, kind in kinds if kind == file_format] or [(file, file_format) for file in files]
    several = sorted({kind for _, kind in kinds})
    if len(several) != 1:
        found = " and ".join(several) or "no file with a known ending"
        raise ValueError(
            f"alignments are of one format (endings {', '.join(_ENDINGS)}), but {path} has {found}: set format={'|'.join(FORMATS)}"
        )
    return kinds


def _without_audio_ending(name: str) -> str:
    """A path without the extension of an audio file; any other dot belongs to the name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in EXTENSIONS else name


def read_tsv(path: Path) -> Table:
    """Reads a table of phone segments, unquoted.

    Args:
        path: Tab-separated file with `path`, `start`, `end` and `phone` in its first line, in any order.

    Returns:
        Segments of each path of the table, in order of time.

    Raises:
        ValueError: If a column is missing, or a line has too few fields, no numbers, or an end before its start.
    """
    lines = _lines(path)
    header = next(lines, (1, ""))[1].split("\t")
    missing = [name for name in ("path", "start", "end", "phone") if name not in header]
    if missing:
        raise ValueError(f"the first line of {path} must name path, start, end and phone, but lacks {', '.join(missing)}")
    places = [header.index(name) for name in ("path", "start", "end", "phone")]

    def parse(line: str) -> tuple[str, list[Segment]]:
        fields = line.split("\t")
        name, start_s, end_s, phone = (fields[place] for place in places)
        return name, [Segment(float(start_s), float(end_s), phone)]

    table: Table = {}
    for name, segments in _parsed(path, lines, parse, "a path, two times in seconds and a phone"):
        table.setdefault(name, []).extend(segments)
    return {name: sorted(segments) for name, segments in table.items()}


def read_ctm(path: Path) -> Table:
    """Reads a NIST CTM file: times in seconds, `;;` begins a comment, a confidence is ignored.

    Returns:
        Segments by recording; of a recording with several channels by `RECORDING-CHANNEL`.

    Raises:
        ValueError: Naming the first line that is not of the format.
    """

    def parse(line: str) -> tuple[tuple[str, str], list[Segment]]:
        name, channel, start_s, duration_s, symbol = line.split()[:5]
        return (name, channel), [Segment(float(start_s), float(start_s) + float(duration_s), symbol)]

    lines = ((number, line) for number, line in _filled(path) if not line.startswith(";;"))
    table: dict[tuple[str, str], list[Segment]] = {}
    for key, segments in _parsed(path, lines, parse, "a recording, a channel, a start, a duration and a symbol"):
        table.setdefault(key, []).extend(segments)
    channels = Counter(name for name, _ in table)
    return {f"{name}-{channel}" if channels[name] > 1 else name: sorted(of) for (name, channel), of in table.items()}


def read_phn(path: Path) -> list[Segment]:
    """Reads a TIMIT `.PHN` file: first and last sample at 16 kHz and a phone, one a line.

    Raises:
        ValueError: Naming the first line that is not of the format.
    """

    def parse(line: str) -> tuple[None, list[Segment]]:
        start, end, phone = line.split()
        return None, [Segment(int(start) / SAMPLE_RATE_HZ, int(end) / SAMPLE_RATE_HZ, phone)]

    parsed = _parsed(path, _filled(path), parse, "two sample numbers and a phone")
    return [segment for _, segments in parsed for segment in segments]


def read_condensed_librispeech(path: Path, tier: str) -> Table:
    """Reads LibriSpeech-alignments in condensed form: each word and its end time; an empty word is a pause.

    Raises:
        ValueError: If `tier` is not one of words, or naming the first line that is not of the format.
    """
    if tier not in _WORDS:
        raise ValueError(
            f"{path} has words, no phones, but the tier is {tier!r}: use the TextGrids of LibriSpeech-alignments, or set tier=words"
        )

    def parse(line: str) -> tuple[str, list[Segment]]:
        match = _CONDENSED.fullmatch(line.strip())
        if match is None:
            raise ValueError("no utterance with two quoted lists")
        ends_s = [float(end_s) for end_s in match[3].split(",")]
        return match[1], [Segment(*of_word) for of_word in zip([0.0, *ends_s[:-1]], ends_s, match[2].split(","), strict=True)]

    return dict(_parsed(path, _filled(path), parse, "an utterance, its words and as many times, both in quotes"))


_TABLES: dict[str, Callable[[Path, str], Table]] = {
    "tsv": lambda path, tier: {_without_audio_ending(name): segments for name, segments in read_tsv(path).items()},
    "ctm": lambda path, tier: read_ctm(path),
    "librispeech": read_condensed_librispeech,
}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from enumerate((line.rstrip("\r\n") for line in file), start=1)
    except UnicodeDecodeError as error:
        raise ValueError(f"an alignment is UTF-8 text, but {path} is not ({error.reason}): convert it first") from error


def _filled(path: Path) -> Iterator[tuple[int, str]]:
    return ((number, line) for number, line in _lines(path) if line.strip())


def _parsed(
    path: Path, lines: Iterable[tuple[int, str]], parse: Callable[[str], tuple[Any, list[Segment]]], form: str
) -> Iterator[tuple[Any, list[Segment]]]:
    """Key and segments of each line; a line that `parse` cannot read, or with times out of order, is an error."""
    for number, line in lines:
        try:
            key, segments = parse(line)
        except (ValueError, IndexError) as error:
            raise ValueError(f"a line of an alignment must be {form}, but line {number} of {path} is {line[:80]!r}") from error
        for start_s, end_s, _ in segments:
            if not 0 <= start_s <= end_s:
                raise ValueError(
                    f"a phone ends after its start, but line {number} of {path} has one from {start_s:g} to {end_s:g} s"
                )
        yield key, segments
