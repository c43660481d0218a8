"""Praat's TextGrid, long and short form by one parser.

As in Praat, values are free-standing numbers, quoted texts and flags such as `<exists>`; the long form's words are ignored.
"""

import math
import re
from pathlib import Path

from openwavlm.evaluation.phones.alignments import Segment

_VALUE = re.compile(r'"((?:[^"]|"")*)"|(<\w+>)|(?<!\S)([-+]?\d[\d.]*(?:[eE][-+]?\d+)?)(?!\S)')


class _Values:
    """Values of a file in order, with the line of each for messages."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self._place = 0
        self._values: list[tuple[str | float, int]] = []
        line, at = 1, 0
        for match in _VALUE.finditer(text):
            line, at = line + text.count("\n", at, match.start()), match.start()
            quoted, flag, number = match.groups()
            if flag is None:
                self._values.append((self._float(number, line) if number else quoted, line))
        self._last_line = line

    def _float(self, number: str, line: int) -> float:
        try:
            value = float(number)
        except ValueError:
            value = math.inf
        if not math.isfinite(value):
            raise self._wrong("a number", repr(number), line)
        return value

    def text(self, what: str) -> str:
        value, line = self._next(what)
        if not isinstance(value, str):
            raise self._wrong(what, f"{value:g}", line)
        return value.replace('""', '"').strip()

    def number(self, what: str) -> float:
        value, line = self._next(what)
        if isinstance(value, str):
            raise self._wrong(what, repr(value), line)
        return value

    def _next(self, what: str) -> tuple[str | float, int]:
        if self._place == len(self._values):
            raise self._wrong(what, "the end of the file", self._last_line)
        self._place += 1
        return self._values[self._place - 1]

    def _wrong(self, what: str, found: str, line: int) -> ValueError:
        return ValueError(f"a TextGrid has {what} here, but line {line} of {self.path} has {found}: save it again from Praat")


def read_textgrid(path: Path, tier: str = "phones") -> list[Segment]:
    """Reads one interval tier.

    Args:
        path: The file, UTF-8 or UTF-16, in Praat's long or short text form.
        tier: Name of the tier; a name that ends in it (`SPEAKER - phones`, as MFA writes it) counts too.

    Returns:
        Its intervals, including those without a text.

    Raises:
        ValueError: If the file is no TextGrid in text form, is truncated, or does not have exactly one such tier.
    """
    values = _Values(path, _text_of(path))
    header = (values.text("the file type"), values.text("the object class"))
    if header != ("ooTextFile", "TextGrid"):
        raise ValueError(f'a TextGrid begins with "ooTextFile" and "TextGrid", but {path} with {header}: convert or remove it')
    tiers = _tiers(values)
    if tier in tiers:
        return tiers[tier]
    fitting = [name for name in tiers if name.endswith(tier)]
    if len(fitting) != 1:
        raise ValueError(
            f"{path} must have one interval tier {tier!r}, but {len(fitting)} of its tiers {sorted(tiers)} end in that: name another tier"
        )
    return tiers[fitting[0]]


def _tiers(values: _Values) -> dict[str, list[Segment]]:
    values.number("its start")
    values.number("its end")
    found = {}
    for _ in range(int(values.number("the number of tiers"))):
        kind, name = values.text("a tier's class"), values.text("a tier's name")
        values.number("a tier's start")
        values.number("a tier's end")
        size = int(values.number("the number of entries"))
        if kind == "IntervalTier":
            found[name] = [_interval(values) for _ in range(size)]
        else:
            for _ in range(size):
                values.number("a point's time")
                values.text("a point's text")
    return found


def _interval(values: _Values) -> Segment:
    return Segment(values.number("an interval's start"), values.number("an interval's end"), values.text("an interval's text"))


def _text_of(path: Path) -> str:
    raw = path.read_bytes()
    if raw.startswith(b"ooBinaryFile"):
        raise ValueError(f"a TextGrid is read in text form, but {path} is a binary one: save it as text from Praat")
    try:
        return raw.decode("utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"a TextGrid is UTF-8 or UTF-16, but {path} is neither ({error.reason}): save it as UTF-8") from error
