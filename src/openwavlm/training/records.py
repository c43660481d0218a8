"""`metrics.csv`, `validation.csv`, `probes.csv`, `health.csv`: rows by step, exact floats, flushed; rows past a checkpoint are cut.

A checkpoint has the length and checksum of each table. A launch that resumes from it compares them: a damaged table is logged and copied
to a file beside, never cut silently.
"""

import csv
import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openwavlm.runtime.atomic import write_atomically
from openwavlm.runtime.resources import naming, retried

Value = int | float | str | None
_OTHER_COLUMNS = "its first line does not name its columns"
BRANCHED = ("metrics.csv", "validation.csv")
TEXT_COLUMNS = frozenset({"rule", "sentence"})
log = logging.getLogger(__name__)


def _field(value: Value) -> str:
    if isinstance(value, str):
        return '"' + value.replace('"', '""').replace("\n", " ") + '"'
    return "" if value is None else repr(value)


@dataclass(frozen=True)
class Record:
    """A table as it was read.

    Attributes:
        columns: Names of its columns.
        rows: Fields of its readable rows, as text, by step.
        lines: Their lines, with the line break.
        faults: Damage, one phrase each; a last line that a kill left incomplete is none.
        differs: Whether its beginning differs from the checksum in a checkpoint.
    """

    columns: list[str]
    rows: list[list[str]] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    differs: bool = False

    @property
    def steps(self) -> list[int]:
        """The step of each row."""
        return [int(row[0]) for row in self.rows]


def read_record(
    path: Path, *, prefix: Mapping[str, Any] | None = None, columns: list[str] | None = None, last_step: int | None = None
) -> Record:
    """Reads a table of a run.

    Rows are in order of their steps, with a field for each column, and numbers in all but `TEXT_COLUMNS`; any other row is left out and
    is a fault.

    Args:
        prefix: `bytes` and `checksum` of its beginning, from a checkpoint.
        columns: Its columns, if known; a header that differs is a fault.
        last_step: Rows past this step are left out; unreadable lines after the last row up to it are no fault.

    Raises:
        ValueError: If it is no file.
        OSError: If it cannot be read; it names the file.
    """
    if not path.is_file():
        raise ValueError(f"{path} is no file: restore it from a copy")
    raw = retried(path.read_bytes, path)
    faults = []
    differs = prefix is not None and _prefix(raw[: prefix["bytes"]]) != dict(prefix)
    if prefix is not None and differs:
        short = f"it has {len(raw)} bytes, not {prefix['bytes']} or more" if len(raw) < prefix["bytes"] else None
        faults.append(short or "its content is not what was written")
    elif prefix is not None and last_step is not None:
        raw = raw[: prefix["bytes"]]  # the rest was written after the checkpoint
    lines = raw.decode(errors="replace").split("\n")[:-1]
    header = lines.pop(0) if lines else ""
    named = header.split(",")
    if columns is not None and named != columns:
        faults.append(_OTHER_COLUMNS)
    record = Record(columns or named, faults=faults, differs=differs)
    texts = {place for place, name in enumerate(record.columns) if name in TEXT_COLUMNS}
    parsed = [(number, line, _fields(line, len(record.columns), texts)) for number, line in enumerate(lines, start=2)]
    steps = [int(row[0]) if row else None for _, _, row in parsed]
    following = _following(steps)
    before, same = -1, 1
    left_out: list[int] = []
    wrong: list[int] = []
    for (number, line, row), step, after in zip(parsed, steps, following, strict=True):
        least = before if texts else before + 1  # health.csv alone may have several rows a step
        disordered = step is not None and (step < least or (after is not None and least <= after < step))
        twice = bool(record.lines) and line + "\n" in record.lines[-same:]
        if row is None or step is None or disordered or twice or (last_step is not None and step > last_step):
            left_out.append(number)
            continue
        wrong += left_out
        same = same + 1 if step == before else 1
        before, left_out = step, []
        record.rows.append(row)
        record.lines.append(line + "\n")
    if last_step is None:
        wrong += left_out
    if wrong:
        faults.append(f"{_listed('line', wrong)} cannot be read")
    return record


def _following(steps: list[int | None]) -> list[int | None]:
    """The step of the next readable row, for each row."""
    found: list[int | None] = []
    after = None
    for step in reversed(steps):
        found.append(after)
        after = after if step is None else step
    return found[::-1]


def _fields(line: str, count: int, texts: set[int]) -> list[str] | None:
    """The fields of a line; None if it is not a row of the table."""
    try:
        row = next(csv.reader([line], strict=True)) if texts else line.split(",")
        if len(row) != count or not (row[0].isascii() and row[0].isdecimal()) or "\ufffd" in line:
            return None
        numbers = [value for place, value in enumerate(row) if value and place not in texts]
        for value in numbers:
            float(value)
    except (ValueError, csv.Error, StopIteration):
        return None
    # float() also reads 1_0 and blanks, which are in none of these tables.
    return None if any(letter in value for value in numbers for letter in "_ \t\r") else row


def _listed(what: str, numbers: list[int], most: int = 5) -> str:
    """`line 3`, `lines 3-7 and 9`, `lines 3, 9 and 40 others`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in spans]
    if len(words) > most:
        rest = sum(last - first + 1 for first, last in spans[most:])
        words = [*words[:most], f"{rest} others"]
    text = words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
    return f"{what}{'s' if len(numbers) > 1 else ''} {text}"


def last_row(path: Path) -> dict[str, float]:
    """Figures of a table's last row; empty without a table or a row."""
    record = read_record(path) if path.is_file() else Record([])
    last = zip(record.columns, record.rows[-1], strict=True) if record.rows else ()
    return {name: float(value) for name, value in last if value}


def known_records(state: Mapping[str, Any] | None, *, own: bool) -> dict[str, Mapping[str, Any]]:
    """Prefixes of the tables in a checkpoint (`state` is its `openwavlm`, None without one).

    Unless the checkpoint is the run's `own`, only those of `BRANCHED`, which a branch copies.
    """
    tables = ((state or {}).get("records") or {}).get("tables", {})
    return {name: prefix for name, prefix in tables.items() if own or name in BRANCHED}


def missing_steps(steps: list[int], last_step: int) -> str | None:
    """Updates of 1 … `last_step` without a row in a table with one row an update, as `updates 4-7 and 9`; None if none is missing."""
    missing = sorted(set(range(1, last_step + 1)) - set(steps))
    return _listed("update", missing) if missing else None


def _prefix(content: bytes) -> dict[str, Any]:
    return {"bytes": len(content), "checksum": hashlib.blake2b(content, digest_size=16).hexdigest()}


class CsvRecord:
    """An append-only table keyed by its first column, `step`.

    Args:
        columns: Names; the first is `step`.
        last_step: Rows past this step are cut (the run starts again after it), as is a torn last line.
        prefix: Length and checksum of the table in the checkpoint at `last_step`; None if unknown.
        every_update: Whether the table has a row for every update.

    Attributes:
        damage: Damage before `last_step`, one sentence; None without.

    Raises:
        ValueError: If an existing file has other columns.
    """

    def __init__(
        self,
        path: Path,
        columns: list[str],
        *,
        last_step: int = 0,
        prefix: Mapping[str, Any] | None = None,
        every_update: bool = False,
    ) -> None:
        self.path, self.columns = path, columns
        header = ",".join(columns) + "\n"
        record = Record(columns)
        if path.exists():
            record = read_record(path, prefix=prefix, columns=columns, last_step=last_step)
            if _OTHER_COLUMNS in record.faults and not record.differs and path.stat().st_size:
                raise ValueError(f"{path} has other columns than this version writes: start a new run (another name)")
        self.damage = self._damage(record, last_step, prefix, every_update=every_update)
        content = "".join([header, *record.lines]).encode()
        self._bytes, self._checksum = len(content), hashlib.blake2b(content, digest_size=16)
        write_atomically(path, content)
        self._file = path.open("a")

    def _damage(self, record: Record, last_step: int, prefix: Mapping[str, Any] | None, *, every_update: bool) -> str | None:
        exists = self.path.exists()
        if not last_step or (not exists and prefix is None and not every_update):
            return None
        if exists and prefix is not None and not record.differs:
            return None  # a gap was logged when it arose
        missing = missing_steps(record.steps, last_step) if every_update else None
        if exists and not record.faults and not missing:
            return None
        fault = f"damaged ({'; '.join(record.faults or ['it ends early'])})" if exists else "missing"
        kept = self._keep_aside(last_step)
        lost = f" {missing} {'has' if missing.startswith('update ') else 'have'} no figures;" if missing else ""
        sentence = (
            f"{self.path} is {fault} before update {last_step}, from which the run resumes:{lost} the rows that can be read are kept"
            + (f", and the file as it was is {kept.name}" if kept else "")
            + "; training is not affected"
        )
        log.warning("%s", sentence)
        return sentence

    def _keep_aside(self, last_step: int) -> Path | None:
        if not self.path.is_file():
            return None
        number = 0
        while (kept := self.path.with_name(f"{self.path.name}.damaged-{last_step}{f'-{number}' if number else ''}")).exists():
            number += 1
        write_atomically(kept, self.path.read_bytes())
        return kept

    def write(self, values: dict[str, Value]) -> None:
        """Appends one row; a missing value is an empty field."""
        assert set(values) <= set(self.columns)
        line = ",".join(_field(values.get(name)) for name in self.columns) + "\n"
        self._bytes += len(line.encode())
        self._checksum.update(line.encode())
        with naming(self.path):
            self._file.write(line)
            self._file.flush()

    def prefix(self) -> dict[str, Any]:
        """Length and checksum of the table so far, for a checkpoint."""
        return {"bytes": self._bytes, "checksum": self._checksum.hexdigest()}

    def sync(self) -> None:
        """Forces the rows to disk, before a checkpoint."""
        with naming(self.path):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Closes the file."""
        with naming(self.path):
            self._file.close()
