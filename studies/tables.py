"""Sentences and tables of paired differences, for the pages of all studies."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from openwavlm.evaluation.intervals import Interval, sign_places
from openwavlm.evaluation.paired import Difference

ABSENT = "–"


class Figure(NamedTuple):
    """A figure that can be compared, its title in tables and the decimal places of its values."""

    title: str
    higher_is_better: bool
    places: int

    @property
    def name(self) -> str:
        """Title without its unit."""
        return self.title.split(" (", 1)[0]


def sentence(figure: Figure, of: str, against: str, found: Difference) -> str:
    """The verdict in words."""
    name, interval = figure.name, found.interval
    places = sign_places(interval.low, interval.high, figure.places)
    between = f"95 % interval {ends(figure, interval)} over {interval.clusters} speakers and {interval.seeds} seeds"
    if found.verdict == "unknown":
        words = f"{of} less {against} is {interval.value:+.{places}f}; no interval, as there is one speaker."
    elif found.verdict == "equal":
        words = (
            f"{of} and {against} are equal: the difference of {interval.value:+.{places}f} is within chance ({between}); "
            f"smallest visible difference {interval.visible:.{places}f}."
        )
    else:
        worth = "better" if (found.verdict == "higher") == figure.higher_is_better else "worse"
        words = f"{of} is {found.verdict}, which is {worth}, than {against} by {abs(interval.value):.{places}f} ({between})."
    if len(found.differences) > 1 and not found.seeds_agree:
        words += " The seeds do not agree on its sign."
    return f"{name[0].upper()}{name[1:]}: {words}"


def table(
    figures: Mapping[str, Difference], kinds: Mapping[str, Figure], of: str, against: str, *, visible: bool = False
) -> list[str]:
    """Lines of a Markdown table with a row for each figure.

    Args:
        figures: Name of the figure → difference.
        kinds: Name → figure.
        of, against: Names of the arms.
        visible: Adds the smallest visible difference of every row, not only of those that are equal.
    """
    lines = [
        f"| figure | {of}: mean (seeds) | {against}: mean (seeds) | difference (seeds) | 95 % interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in figures.items():
        kind = kinds[name]
        known = not np.isnan(found.interval.visible) and (visible or found.verdict == "equal")
        seen = f" (visible from {found.interval.visible:.{kind.places}f})" if known else ""
        cells = [
            kind.title,
            seeds(kind, found.of),
            seeds(kind, found.against),
            seeds(kind, found.differences, signed=True),
            ends(kind, found.interval),
            found.verdict + seen,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ends(figure: Figure, interval: Interval) -> str:
    """Both ends, with as many places as the verdict needs; a dash without an interval."""
    if np.isnan(interval.low):
        return ABSENT
    places = sign_places(interval.low, interval.high, figure.places)
    return f"{interval.low:+.{places}f} to {interval.high:+.{places}f}"


def seeds(figure: Figure, values: Sequence[float], *, signed: bool = False) -> str:
    """`mean (value, value, …)`."""
    form = f"{'+' if signed else ''}.{figure.places}f"
    return f"{np.mean(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"
