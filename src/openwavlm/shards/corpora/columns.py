"""Finds the column of each field of a manifest: by the configuration, else by its name."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_FIRST_FIELDS = ("path", "speaker", "recording", "text", "language", "start_s", "end_s")
FIELDS = (*_FIRST_FIELDS, "duration_s", "channel")
_PARTS = ("start_s", "end_s", "duration_s", "channel")

# Names of a segment's times in common manifests: `offset` and `duration` in NeMo, `start` in lhotse and others, …
_OF_A_SEGMENT = r"((seg|segment|utt|utterance|clip|cut)_?)?"
_TIMES = {
    "start_s": rf"{_OF_A_SEGMENT}(start|begin|offset|onset|(start|begin)_?(time|offset))|tmin|xmin",
    "end_s": rf"{_OF_A_SEGMENT}(end|stop|(end|stop)_?(time|offset))|tmax|xmax",
    "duration_s": rf"{_OF_A_SEGMENT}(dur|duration)",
}
# Columns with such a word in their name that hold no field are logged.
_WORDS = {"start", "begin", "offset", "onset", "end", "stop", "duration", "dur", "from", "to", "channel", "t0", "t1"}
_UNITS = {"": 1.0, "s": 1.0, "sec": 1.0, "secs": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3, "milliseconds": 1e-3}
_COUNTED = r"samples?|frames?|bytes?|smp"
_OTHER_UNITS = rf"{_COUNTED}|[uµn]s(ec)?|(micro|nano)sec(ond)?s?|m|mins?|minutes?|h|hours?|hms|ticks?|timecode"
# A length without a unit in its name.
_LENGTH = rf"{_OF_A_SEGMENT}(length|len)|(n|num)_?({_COUNTED})"
_OTHER_NAMES = {"path": r"audio_file_?path", "channel": r"channel(_?(id|index|number|selector))?"}
_WAY_OUT = "name the columns with columns.path=…, columns.speaker=…"


@dataclass(frozen=True)
class Columns:
    """Column `of` each field that has one, seconds of one unit (`scale`) of its times, and `unused` columns that look like times."""

    of: Mapping[str, str]
    scale: Mapping[str, float]
    unused: tuple[str, ...]

    def naming(self, field: str) -> str:
        """Name of a field for messages, with its column if that has another name."""
        return field if self.of[field] == field else f"{field} (column {self.of[field]!r})"


def check_distinct(names: Sequence[str], where: str) -> None:
    """Raises a ValueError if two columns have one name, since one of them would be lost."""
    for name, times in Counter(names).items():
        if times > 1:
            what = f"are called {name!r}" if name else "have no name"
            raise ValueError(f"{where}: {times} columns {what}: rename or remove all but one")


def find_columns(names: Sequence[str], asked: Mapping[str, Any], where: str, *, by_name: bool = True) -> Columns:
    """Finds the column of each field: by `asked`, else by its own name, else by its names in common manifests (docs/data.md).

    Args:
        names: Columns of the manifest.
        asked: Columns by field, as `{"path": "file", "start_s": "begin"}`, and as `ignore` a list of columns that do not define a part of
            the audio.
        where: File and line, for messages.
        by_name: False for shard sets that were begun when a field was found by its own name only.

    Raises:
        ValueError: If a column of `asked` or `path` is missing, two columns could hold one field, or a column gives times in samples,
            frames or another unit, or a length of unknown unit beside a start without an end.
    """
    chosen = {field: str(column).strip() for field, column in asked.items() if column and field != "ignore"}
    ignored = {str(name).strip() for name in asked.get("ignore") or ()}
    for column in [*chosen.values(), *ignored]:
        if column not in names:
            raise ValueError(f"{where}: there is no column {column!r} among {_listed(names)}: {_WAY_OUT}")
    scale = dict.fromkeys(_TIMES, 1.0)
    unused: list[str] = []
    free = [name for name in names if name not in ignored and name not in chosen.values()]
    for field in FIELDS if by_name else _FIRST_FIELDS:
        named = [name for name in free if _plain(name) == field]
        also = {name: unit for name in free if name not in named and (unit := _unit(field, name)) is not None}
        if field not in chosen:
            exact = [field] if field in named else []
            candidates = exact or (named or list(also) if by_name else [])
            if len(candidates) > 1:
                raise ValueError(
                    f"{where}: the columns {_listed(candidates)} could all hold {field}: choose one with columns.{field}=…, and name "
                    "the others in columns.ignore=[…]"
                )
            if candidates:
                chosen[field] = candidates[0]
                if field in scale:
                    scale[field] = also.get(candidates[0], 1.0)
        if field in _PARTS:
            unused += [name for name in (*named, *also) if name not in chosen.values()]
    if "path" not in chosen:
        separators = "; cells are separated by tabs in .tsv and by commas in .csv, and the first line holds the names"
        way_out = _WAY_OUT + (separators if len(names) == 1 else "")
        raise ValueError(f"{where}: there is no column 'path' among {_listed(names)}: {way_out}")
    for field in ("start_s", "end_s", "duration_s"):
        numbers = [name for name in free if _has_other_unit(field, name)]
        # Without a start, a duration is often that of the file.
        needed = field not in chosen and (field != "duration_s" or ("start_s" in chosen and "end_s" not in chosen))
        if numbers and by_name and needed:
            raise ValueError(
                f"{where}: the column {numbers[0]!r} seems to give {field}, but not in seconds or milliseconds: convert it, give "
                f"columns.{field}={numbers[0]} if it is in seconds, or columns.ignore=[{numbers[0]}] if it does not define a part of "
                "the audio"
            )
        unused += numbers if field != "duration_s" or "start_s" in chosen else ()
    unused += [name for name in free if _WORDS & set(_plain(name).split("_"))]
    return Columns(chosen, scale, tuple(sorted(set(unused) - set(chosen.values()))))


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def _plain(name: str) -> str:
    """Normalises a column's name: `Duration [ms]` → `duration_ms`, `startTime` → `start_time`."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()).strip("_")


def _has_other_unit(field: str, name: str) -> bool:
    stem, plain = _TIMES[field], _plain(name)
    if re.fullmatch(rf"({stem})(_({_OTHER_UNITS})|_?({_COUNTED}))|({_COUNTED})_({stem})", plain):
        return True
    return field == "duration_s" and re.fullmatch(_LENGTH, plain) is not None


def _unit(field: str, name: str) -> float | None:
    """Seconds of one unit of a column, if its name is a common one of the field; else None."""
    plain = _plain(name)
    if field not in _TIMES:
        return 1.0 if field in _OTHER_NAMES and re.fullmatch(_OTHER_NAMES[field], plain) else None
    units = "|".join(filter(None, _UNITS))
    found = re.fullmatch(rf"({_TIMES[field]})(_(?P<unit>{units}))?", plain)
    if found is None and field == "duration_s":
        found = re.fullmatch(rf"{_OF_A_SEGMENT}length_(?P<unit>{units})", plain)
    return _UNITS[found["unit"] or ""] if found else None
