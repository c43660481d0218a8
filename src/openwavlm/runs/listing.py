"""State, progress, loss, speed and age of each run in `runs/`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openwavlm.runs.lock import DEAD_AFTER_S
from openwavlm.training.run_files import parse_config, read_summary

_TAIL_BYTES = 8192  # of a table: holds its last row


@dataclass(frozen=True)
class RunRow:
    """One run; None = unknown.

    Attributes:
        name: Its folder below the root.
        state: `training`, `finished`, `stopped`, `chain` (of `openwavlm iterate` or `studies/learn.py`) or `damaged`.
        step: Updates that are done, of `updates` in all.
        loss: Cross-entropy of the last update, nats: of masked frames, or of the targets in fine-tuning.
        audio_s_per_s: Speed of the last launch that ended.
        age_s: Time since its records changed.
    """

    name: str
    state: str
    step: int | None = None
    updates: int | None = None
    loss: float | None = None
    audio_s_per_s: float | None = None
    age_s: float | None = None


def list_runs(root: Path, now: float) -> list[RunRow]:
    """The runs below a folder, the one that changed last first; `now` in seconds since 1970."""
    rows = [_row(folder, root, now) for folder in _folders(root)] if root.is_dir() else []
    return sorted(rows, key=lambda row: (row.age_s is None, row.age_s, row.name))


def _folders(root: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(root):
        if "run.json" in files or "stages" in folders:
            folders.clear()
            yield Path(place)
        folders.sort()


def _row(folder: Path, root: Path, now: float) -> RunRow:
    name = folder.relative_to(root).as_posix()
    records = [path for path in (folder / name for name in ("metrics.csv", "run.json", "summary.json")) if path.is_file()]
    age = max(0.0, now - max((path.stat().st_mtime for path in records), default=folder.stat().st_mtime))
    if (folder / "stages").is_dir():
        return RunRow(name, "chain", age_s=age)
    try:
        config = parse_config(folder / "config.yaml")
        summary = read_summary(folder / "summary.json") if (folder / "summary.json").is_file() else {}
        last = _last_row(folder / "metrics.csv")
        updates = int(config["optim"]["updates"])
    except (ValueError, OSError, KeyError, TypeError):
        return RunRow(name, "damaged", age_s=age)
    step = int(last["step"]) if last else int(summary.get("updates", 0))
    launch: dict[str, Any] = summary.get("this_launch", {})
    speed = launch["audio_seconds"] / launch["wall_seconds"] if launch.get("wall_seconds") and "audio_seconds" in launch else None
    state = "training" if _is_held(folder / "lock", now) else "finished" if summary.get("complete") else "stopped"
    return RunRow(name, state, step, updates, last.get("cross_entropy", last.get("loss")), speed, age)


def _is_held(lock: Path, now: float) -> bool:
    """True while a launch holds the run: it renews its record in the lock regularly."""
    return lock.is_file() and lock.stat().st_size > 0 and now - lock.stat().st_mtime < DEAD_AFTER_S


def _last_row(table: Path) -> dict[str, float]:
    """The last whole row of a table; empty without one."""
    if not table.is_file():
        return {}
    with table.open("rb") as file:
        columns = file.readline().decode().strip().split(",")
        begin = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(max(begin, end - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    fields = lines[-1].split(",") if lines else []
    return {name: float(value) for name, value in zip(columns, fields, strict=True) if value} if fields else {}
