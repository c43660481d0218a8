"""Reads a table of utterances: TSV (no quoting), CSV or JSON lines, one utterance per row, paths relative to the table's folder."""

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any, TextIO

from openwavlm.shards.corpora.columns import Columns, check_distinct, find_columns
from openwavlm.shards.corpora.utterance import Utterance, portable

# Common marks of an unknown name; as a name, such a mark would merge many speakers into one.
_UNKNOWN = frozenset({"", "-", "nan", "NaN", "None", "null", "NULL", "<NA>", "N/A"})
_NAMES = ("speaker", "recording", "language")
# The only note that is not a warning.
ONLY_KEPT = "that is only copied to the shards' JSON"
# An end that is given twice, by end_s and by duration_s, may differ by rounding.
_END_TOLERANCE_S = 0.1


def utterances(
    manifest: Path,
    *,
    columns: Mapping[str, Any] | None = None,
    language: str = "",
    by_name: bool = True,
    notes: Counter[str] | None = None,
) -> Iterator[Utterance]:
    """Yields an utterance for each row of a manifest, in order.

    Only a path is required. An empty cell or `-` means unknown, as do `nan`, `None` and similar marks for names. Without `recording`,
    the audio file is the recording. Columns that hold no field are copied to the shard's JSON.

    Args:
        manifest: `.tsv`, `.csv` or `.jsonl`; UTF-8, the first two with a header.
        columns, by_name: As `asked` and `by_name` in `find_columns`.
        language: Language of the rows that name none.
        notes: Collects sentences for the log, each with its number of rows.

    Raises:
        ValueError: If the file does not exist or has another extension, a column is missing, ambiguous or there twice, a row is
            malformed (with its line number) or has the name of another one, or the file is not UTF-8.
    """
    if not manifest.exists():
        raise ValueError(f"the manifest {manifest} does not exist: give input=FILE.tsv, .csv or .jsonl")
    if not manifest.is_file():
        raise ValueError(f"a manifest is a file, but {manifest} is not: give input=FILE.tsv, or layout=folder for a folder")
    notes = Counter() if notes is None else notes
    found: dict[tuple[str, ...], Columns] = {}
    places: dict[str, tuple[int, str]] = {}
    try:
        for line, row in _rows(manifest, notes):
            where, names = f"{manifest}, line {line}", tuple(row)
            if names not in found:
                found[names] = find_columns(names, columns or {}, where, by_name=by_name)
            utterance = _utterance(row, found[names], language, where, notes)
            earlier = places.setdefault(utterance.name, (line, utterance.speaker))
            if earlier[0] != line:
                first, second = earlier[1], utterance.speaker
                same = "one speaker" if first == second else f"the speakers {first or 'unknown'!r} and {second or 'unknown'!r}"
                raise ValueError(
                    f"{manifest}, lines {earlier[0]} and {line}: every utterance needs a name of its own, but both are "
                    f"{utterance.name!r} (of {same}): remove or correct one"
                )
            yield utterance
    except UnicodeDecodeError as error:
        raise ValueError(f"the manifest {manifest} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error


def _rows(manifest: Path, notes: Counter[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields (line number, row)."""
    kind = manifest.suffix.lower()
    if kind not in {".tsv", ".csv", ".jsonl"}:
        raise ValueError(f"a manifest ends in .tsv, .csv or .jsonl, but this is {manifest.name}: rename or convert it")
    with manifest.open(encoding="utf-8-sig", newline="" if kind == ".csv" else None) as file:
        if kind == ".jsonl":
            for number, text in enumerate(file, 1):
                if text.strip():
                    yield number, _json_row(text, f"{manifest}, line {number}")
            return
        header: list[str] = []
        # No quoting in TSV: transcripts hold quotation marks and apostrophes.
        tsv = ((number, text.rstrip("\n").split("\t")) for number, text in enumerate(file, 1))
        for number, cells in _csv_cells(file, manifest, notes) if kind == ".csv" else tsv:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = [cell.strip() for cell in cells]
                check_distinct(header, f"{manifest}, line {number}")
                continue
            if len(cells) != len(header):
                raise ValueError(
                    f"{manifest}, line {number}: {len(cells)} cells under {len(header)} columns: "
                    "check the separators (TSV has no quoting)"
                )
            yield number, dict(zip(header, cells, strict=True))


def _csv_cells(file: TextIO, manifest: Path, notes: Counter[str]) -> Iterator[tuple[int, list[str]]]:
    # Not strict, an unclosed quotation mark would make one cell of all following rows.
    table = csv.reader(file, strict=True)
    last = 0
    try:
        for cells in table:
            notes["rows with quoted cells of several lines of the file"] += table.line_num > last + 1
            yield last + 1, cells
            last = table.line_num
    except csv.Error as error:
        raise ValueError(
            f"{manifest}, line {last + 1}: not valid CSV ({error}): quote a cell that has quotation marks, and double them"
        ) from error


def _json_row(text: str, where: str) -> dict[str, Any]:
    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name.strip() for name, _ in pairs]
        check_distinct(names, where)
        return dict(zip(names, (value for _, value in pairs), strict=True))

    try:
        row = json.loads(text, object_pairs_hook=distinct)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error.msg}): each line must be one JSON object") from error
    except RecursionError as error:
        raise ValueError(f"{where}: JSON nested too deeply: each line must be one JSON object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: each line must be one JSON object, but this is a {type(row).__name__}")
    return row


def _utterance(row: dict[str, Any], columns: Columns, language: str, where: str, notes: Counter[str]) -> Utterance:
    known = {}
    for field, column in columns.of.items():
        cell = _cell(row[column], column, where, unknown="nan" if field in columns.scale else "")
        if field in _NAMES and cell.strip() in _UNKNOWN - {"", "-"}:
            notes[f"rows with the {field} {cell.strip()!r}, which is read as unknown"] += 1
        elif cell.strip() not in ("", "-"):
            known[field] = cell if field == "text" else cell.strip()
    for column in columns.unused:
        notes[f"rows with a column {column!r} that is not used, though it seems to define a part of the audio"] += 1
    path = known.get("path", "")
    if not PurePath(path).name or not _can_be_opened(path):
        what = f"{path!r} names no file" if path else "is empty"
        raise ValueError(f"{where}: the path {what}: every row needs an audio file")
    start_s, end_s = _segment(known, columns, where)
    channel = _channel(known["channel"], where) if "channel" in known else None
    file_name = portable(PurePath(path).with_suffix("").as_posix())
    name = file_name
    if start_s or end_s is not None:
        name += f"@{start_s:.3f}-" + ("" if end_s is None else f"{end_s:.3f}")
    extra = {column: _plain(value) for column, value in row.items() if column not in columns.of.values()}
    for column in extra.keys() - set(columns.unused):
        notes[f"rows with a column {column!r} {ONLY_KEPT}"] += 1
    utterance = Utterance(
        name,
        path,
        start_s,
        end_s,
        speaker=portable(known.get("speaker", "")),
        recording=portable(known.get("recording", file_name)),
        text=known.get("text", ""),
        language=portable(known.get("language", language)),
        extra=extra,
    )
    return utterance if channel is None else utterance.of_channel(channel, speaker=utterance.speaker)


def _can_be_opened(path: str) -> bool:
    """True if the system accepts the name of a file: no NUL, and no half of a surrogate pair."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return False
    return "\0" not in path


def _cell(value: Any, column: str, where: str, *, unknown: str) -> str:
    """Text of a cell; JSON's null is empty, and its NaN `unknown`."""
    if value is None:
        return ""
    if isinstance(value, float) and math.isnan(value):
        return unknown
    if isinstance(value, bool | list | dict):
        raise ValueError(f"{where}: {column!r} must be a text or a number, but is {json.dumps(value)[:80]}")
    return str(value)


def _plain(value: Any) -> Any:
    """Replaces NaN and infinities by None, for JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


def _segment(known: Mapping[str, str], columns: Columns, where: str) -> tuple[float, float | None]:
    """Start and end in seconds; None for the end of the file."""
    seconds = {
        field: _seconds(known[field], columns.naming(field), where) * columns.scale[field]
        for field in ("start_s", "end_s", "duration_s")
        if field in known
    }
    start_s, end_s = seconds.get("start_s", 0.0), seconds.get("end_s")
    if "duration_s" in seconds:
        # Rounded, so that 0.1 + 0.2 names the same segment as 0.3.
        by_duration_s = round(start_s + seconds["duration_s"], 6)
        if end_s is not None and abs(end_s - by_duration_s) > _END_TOLERANCE_S:
            raise ValueError(
                f"{where}: end_s is {end_s:g}, but start_s and duration_s end at {by_duration_s:g}: correct the row, or name the "
                "wrong column in columns.ignore=[…]"
            )
        end_s = by_duration_s if end_s is None else end_s
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise ValueError(
            f"{where}: a segment needs 0 ≤ start_s < end_s, but has {start_s:g} and {end_s}: correct or drop the row"
        )
    return start_s, end_s


def _seconds(text: str, field: str, where: str) -> float:
    try:
        value = float("nan" if "_" in text else text)
    except ValueError:
        value = float("nan")
    if not math.isfinite(value):
        raise ValueError(f"{where}: {field} must be a number of seconds, but is {text!r}")
    return value


def _channel(text: str, where: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) < 4:
        return int(text)
    if len(text) == 1 and "A" <= text.upper() <= "H":
        return ord(text.upper()) - ord("A")
    raise ValueError(
        f"{where}: a channel is a number from 0 or a letter from A, but is {text!r}: correct the cell, or name its column in "
        "columns.ignore=[…]"
    )
