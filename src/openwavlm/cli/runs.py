"""`openwavlm runs`: a table of the runs in `runs/`, or in another folder."""

import sys
import time
from pathlib import Path

from openwavlm.cli.main import USAGE
from openwavlm.runs.listing import RunRow, list_runs

_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def main() -> None:
    """The command `openwavlm runs`."""
    words = sys.argv[1:]
    if len(words) > 1 or any(word.startswith("-") or "=" in word for word in words):
        sys.stderr.write(f"{USAGE['runs']}\n")
        raise SystemExit(2)
    root = Path(words[0] if words else "runs")
    rows = list_runs(root, time.time())
    print("\n".join(table(rows)) if rows else f"no runs in {root}")


def table(rows: list[RunRow]) -> list[str]:
    """Lines of a table with a heading, columns aligned."""
    head = ("name", "state", "update", "loss", "audio-s/s", "age")
    cells = [head, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(head))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in cells]


def _cells(row: RunRow) -> tuple[str, ...]:
    update = "" if row.step is None else f"{row.step:,} of {row.updates:,}"
    loss = "" if row.loss is None else f"{row.loss:.3f}"
    speed = "" if row.audio_s_per_s is None else f"{row.audio_s_per_s:.0f}"
    return row.name, row.state, update, loss, speed, "" if row.age_s is None else _age(row.age_s)


def _age(seconds: float) -> str:
    unit, size = next((unit, size) for unit, size in _UNITS if seconds >= size or size == 1)
    return f"{seconds / size:.0f} {unit}"
