"""A table of utterances: TSV (no quoting), CSV or JSON lines, one utterance a row, paths relative to the table's folder."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from openwavlm.data.corpora.utterance import Utterance, portable

FIELDS = ("path", "speaker", "recording", "text", "language", "start_s", "end_s")


def utterances(manifest: Path, *, columns: Mapping[str, str | None] | None = None, language: str = "") -> Iterator[Utterance]:
    """Lists the rows of a manifest.

    Only `path` is required. An empty cell or `-` means unknown. Without `recording`, the audio file is the recording. Columns
    that are not named here travel into the shard's JSON as they are.

    Args:
        manifest: `.tsv` (tab-separated, quotes are ordinary characters), `.csv` or `.jsonl`; UTF-8, the first two with a header.
        columns: Which column holds which field, as `{"path": "file", "start_s": "begin"}`; a field that is absent or None is
            looked up under its own name.
        language: Language of the rows that name none.

    Yields:
        Utterances in the order of the rows.

    Raises:
        ValueError: If the file does not exist or has another extension, a named column is missing, a row is malformed (with its
            line number), or it is not UTF-8.
    """
    if not manifest.is_file():
        raise ValueError(f"the manifest {manifest} does not exist: give input=FILE.tsv, .csv or .jsonl")
    chosen = {field: column for field, column in (columns or {}).items() if column}
    try:
        for line, row in _rows(manifest):
            for column in {chosen.get("path", "path"), *chosen.values()} - row.keys():
                raise ValueError(
                    f"{manifest}, line {line}: there is no column {column!r} among {', '.join(map(repr, row))}: "
                    "name the columns with columns.path=…, columns.speaker=…"
                )
            yield _utterance(row, chosen, language, f"{manifest}, line {line}")
    except UnicodeDecodeError as error:
        raise ValueError(f"the manifest {manifest} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error


def _rows(manifest: Path) -> Iterator[tuple[int, dict[str, Any]]]:
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
        # Transcripts hold quotation marks and apostrophes; in TSV they mean nothing.
        table = csv.reader(file) if kind == ".csv" else (text.rstrip("\n").split("\t") for text in file)
        header: list[str] = []
        for number, cells in enumerate(table, 1):
            if not header:
                header = list(cells)
            elif cells and cells != [""]:
                if len(cells) != len(header):
                    raise ValueError(
                        f"{manifest}, line {number}: {len(cells)} cells under {len(header)} columns: "
                        "check the separators (TSV has no quoting)"
                    )
                yield number, dict(zip(header, cells, strict=True))


def _json_row(text: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON ({error.msg}): each line must be one JSON object") from error
    if not isinstance(row, dict):
        raise ValueError(f"{where}: each line must be one JSON object, but this is a {type(row).__name__}")
    return row


def _utterance(row: dict[str, Any], chosen: Mapping[str, str], language: str, where: str) -> Utterance:
    cells = {field: row.get(chosen.get(field, field)) for field in FIELDS}
    known = {field: str(cell) for field, cell in cells.items() if cell is not None and str(cell).strip() not in ("", "-")}
    if "path" not in known:
        raise ValueError(f"{where}: the path is empty: every row needs an audio file")
    start_s = _seconds(known.get("start_s", "0"), "start_s", where)
    end_s = _seconds(known["end_s"], "end_s", where) if "end_s" in known else None
    if start_s < 0 or (end_s is not None and end_s <= start_s):
        raise ValueError(
            f"{where}: a segment needs 0 ≤ start_s < end_s, but has {start_s:g} and {end_s}: correct or drop the row"
        )
    file_name = portable(PurePath(known["path"]).with_suffix("").as_posix())
    name = file_name
    if start_s or end_s is not None:
        name += f"@{start_s:.3f}-" + ("" if end_s is None else f"{end_s:.3f}")
    used = {chosen.get(field, field) for field in FIELDS}
    return Utterance(
        name,
        known["path"],
        start_s,
        end_s,
        speaker=portable(known.get("speaker", "")),
        recording=portable(known.get("recording", file_name)),
        text=known.get("text", ""),
        language=portable(known.get("language", language)),
        extra={column: cell for column, cell in row.items() if column not in used},
    )


def _seconds(text: str, field: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not value < float("inf"):
        raise ValueError(f"{where}: {field} must be a number of seconds, but is {text!r}: correct the cell")
    return value
