"""Planted deaths for tests: a process kills itself when it reaches a named point for the n-th time.

`OPENWAVLM_FAULT=save.renamed:2:KILL` sends SIGKILL when the second checkpoint has been renamed and the old ones are not yet pruned.
"""

import os
import signal
from typing import Any

POINTS = ("step", "save.begin", "save.writing", "save.written", "save.synced", "save.renamed", "validation", "probes")
_reached: dict[str, int] = {}


def _planted() -> tuple[str, int, int] | None:
    text = os.environ.get("OPENWAVLM_FAULT")
    if not text:
        return None
    point, count, name = text.split(":")
    if point not in POINTS:
        raise ValueError(f"OPENWAVLM_FAULT names the point {point}, but there are {', '.join(POINTS)}")
    return point, int(count), signal.Signals[f"SIG{name}"].value


def reach(point: str) -> None:
    """Ends the process here if the variable names this point.

    Raises:
        ValueError: If the variable names an unknown point.
    """
    planted = _planted()
    if planted is None or planted[0] != point:
        return
    _reached[point] = _reached.get(point, 0) + 1
    if _reached[point] == planted[1]:
        os.kill(os.getpid(), planted[2])


class _Watched:
    """A file that reaches a point at every write."""

    def __init__(self, file: Any, point: str) -> None:
        self._file, self._point = file, point

    def write(self, data: Any) -> int:
        reach(self._point)
        return self._file.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def watched(file: Any, point: str) -> Any:
    """The file itself; with a planted fault, one that reaches `point` at every write."""
    return _Watched(file, point) if _planted() is not None else file
