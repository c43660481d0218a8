"""Alignment files of every format as one table: recording → segments in seconds, each file read at its first use.

| format | files | name of the recording |
|---|---|---|
| `tsv` | one table, header with `path start end phone` (seconds; other columns are ignored) | `path` without the audio's extension |
| `textgrid` | `NAME.TextGrid` in any depth (MFA, LibriSpeech-alignments) | path below the folder |
| `ctm` | NIST `RECORDING CHANNEL START DURATION SYMBOL [CONFIDENCE]` | the first field; with `-CHANNEL` where a recording has several |
| `librispeech` | LibriSpeech-alignments, condensed: `UTTERANCE ",WORDS," "END,TIMES"` in `*.alignment.txt` | the utterance |
| `phn` | TIMIT `NAME.PHN`: `START END PHONE` in samples at 16 kHz | path below the folder |
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

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
    """Segments by recording; with one file a recording, each is read at its access.

    Args:
        readers: Name of the recording → its reader.
    """

    def __init__(self, readers: Mapping[str, Callable[[], list[Segment]]]) -> None:
        self._readers = readers

    def __getitem__(self, name: str) -> list[Segment]:
        return self._readers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)


def read_alignments(path: Path | str, *, file_format: str = "auto", tier: str = "phones") -> Alignments:
    """Opens a file, or all files of a folder in any depth.

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
    found = _files(path, file_format)
    root = path if path.is_dir() else path.parent
    readers: dict[str, Callable[[], list[Segment]]] = {}
    for file, kind in found:
        if kind == "textgrid":
            _add(readers, {_below(file, root): partial(read_textgrid, file, tier)}, file)
        elif kind == "phn":
            _add(readers, {_below(file, root): partial(read_phn, file)}, file)
        else:
            table = _TABLES[kind](file, tier)
            _add(readers, {name: segments.copy for name, segments in table.items()}, file)
    return Alignments(readers)


def _files(path: Path, file_format: str) -> list[tuple[Path, str]]:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    kinds = [
        (file, next((kind for ending, kind in _ENDINGS.items() if file.name.lower().endswith(ending)), "")) for file in files
    ]
    if file_format != "auto":
        # A single file has the named format; in a folder, files with its ending have it, else all files.
        named = [(file, kind) for file, kind in kinds if kind == file_format]
        return named if path.is_dir() and named else [(file, file_format) for file in files]
    known = [(file, kind) for file, kind in kinds if kind]
    several = sorted({kind for _, kind in known})
    if len(several) != 1:
        found = " and ".join(several) or "no file with a known ending"
        raise ValueError(
            f"alignments are of one format (endings {', '.join(_ENDINGS)}), but {path} has {found}: name one by "
            f"format={'|'.join(FORMATS)}"
        )
    return known


def _add(readers: dict[str, Callable[[], list[Segment]]], more: Mapping[str, Callable[[], list[Segment]]], file: Path) -> None:
    for name, reader in more.items():
        if name in readers:
            raise ValueError(
                f"a recording has one alignment, but {name!r} of {file} was in an earlier file too: remove one of them"
            )
        readers[name] = reader


def _below(file: Path, root: Path) -> str:
    return file.relative_to(root).with_suffix("").as_posix()


def without_audio_ending(name: str) -> str:
    """A path without the extension of an audio file; any other dot belongs to the name."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in EXTENSIONS else name


def read_tsv(path: Path | str) -> dict[str, list[Segment]]:
    """Reads a table of phone segments, unquoted.

    Args:
        path: Tab-separated file whose first line has `path`, `start`, `end` and `phone` in any order.

    Returns:
        Segments of each path of the table, in order of time.

    Raises:
        ValueError: If a column is missing, or a line has too few fields, no numbers, or an end before its start.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"an alignment is UTF-8 text, but {path} is not ({error.reason}): convert it first") from error
    header = lines[0].split("\t") if lines else []
    missing = [name for name in ("path", "start", "end", "phone") if name not in header]
    if missing:
        raise ValueError(f"the first line of {path} must name path, start, end and phone, but lacks {', '.join(missing)}")
    places = [header.index(name) for name in ("path", "start", "end", "phone")]
    table: dict[str, list[Segment]] = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        try:
            name, start, end, phone = (fields[place] for place in places)
            segment = Segment(float(start), float(end), phone)
        except (IndexError, ValueError) as error:
            raise ValueError(
                f"line {number} of {path} must be a path, two times in seconds and a phone, but is {line!r}"
            ) from error
        if not 0 <= segment.start_s <= segment.end_s:
            raise ValueError(f"a phone ends after its start, but line {number} of {path} has {start} to {end}")
        table.setdefault(name, []).append(segment)
    return {name: sorted(segments) for name, segments in table.items()}


def read_ctm(path: Path) -> Table:
    """Reads a NIST CTM file: times in seconds, `;;` begins a comment, a confidence is left out.

    Returns:
        Segments by recording; of a recording with several channels by `RECORDING-CHANNEL`.

    Raises:
        ValueError: Naming the first line that is not of the format.
    """
    channels: dict[str, Table] = {}
    for number, line in _lines(path):
        fields = line.split()
        if not fields or line.startswith(";;"):
            continue
        try:
            name, channel, start_s, duration_s, symbol = fields[:5]
            segment = Segment(float(start_s), float(start_s) + float(duration_s), symbol)
        except ValueError as error:
            raise ValueError(
                f"a CTM line is a recording, a channel, a start, a duration and a symbol, but line {number} of {path} is {line!r}"
            ) from error
        _check_order(segment, number, path)
        channels.setdefault(name, {}).setdefault(channel, []).append(segment)
    return {
        (f"{name}-{channel}" if len(of) > 1 else name): sorted(segments)
        for name, of in channels.items()
        for channel, segments in of.items()
    }


def read_phn(path: Path) -> list[Segment]:
    """Reads a TIMIT `.PHN` file: first and last sample at 16 kHz and a phone, one a line.

    Raises:
        ValueError: Naming the first line that is not of the format.
    """
    segments = []
    for number, line in _lines(path):
        fields = line.split()
        if not fields:
            continue
        try:
            start, end, phone = fields
            segment = Segment(int(start) / SAMPLE_RATE_HZ, int(end) / SAMPLE_RATE_HZ, phone)
        except ValueError as error:
            raise ValueError(f"a .PHN line is two sample numbers and a phone, but line {number} of {path} is {line!r}") from error
        _check_order(segment, number, path)
        segments.append(segment)
    return segments


def read_condensed_librispeech(path: Path, tier: str = "words") -> Table:
    """Reads LibriSpeech-alignments in condensed form: each word and when it ends; an empty word is a pause.

    Raises:
        ValueError: If `tier` is not one of words, or naming the first line that is not of the format.
    """
    if tier not in _WORDS:
        raise ValueError(
            f"{path} has words, no phones, but the tier is {tier!r}: use the TextGrids of LibriSpeech-alignments, or set "
            "tier=words"
        )
    table: Table = {}
    for number, line in _lines(path):
        if not line.strip():
            continue
        match = _CONDENSED.fullmatch(line.strip())
        words = match[2].split(",") if match else []
        try:
            ends_s = [float(end_s) for end_s in match[3].split(",")] if match else []
        except ValueError:
            ends_s = []
        if match is None or len(words) != len(ends_s):
            raise ValueError(
                f"a condensed alignment is an utterance, its words and as many times, both in quotes, but line {number} of {path} is "
                f"{line[:80]!r}"
            )
        starts_s = [0.0, *ends_s[:-1]]
        table[match[1]] = [Segment(*of_word) for of_word in zip(starts_s, ends_s, words, strict=True)]
        for segment in table[match[1]]:
            _check_order(segment, number, path)
    return table


def _read_table(path: Path, tier: str) -> Table:
    return {without_audio_ending(name): segments for name, segments in read_tsv(path).items()}


_TABLES: dict[str, Callable[[Path, str], Table]] = {
    "tsv": _read_table,
    "ctm": lambda path, tier: read_ctm(path),
    "librispeech": read_condensed_librispeech,
}


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            yield from enumerate((line.rstrip("\r\n") for line in file), start=1)
    except UnicodeDecodeError as error:
        raise ValueError(f"an alignment is UTF-8 text, but {path} is not ({error.reason}): convert it first") from error


def _check_order(segment: Segment, number: int, path: Path) -> None:
    if not 0 <= segment.start_s <= segment.end_s:
        raise ValueError(
            f"a phone ends after its start, but line {number} of {path} has one from {segment.start_s:g} to {segment.end_s:g} s"
        )
