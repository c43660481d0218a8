"""`summary.json` of a training run."""

import json
import logging
from pathlib import Path
from typing import Any

from openwavlm.runtime.atomic import write_atomically
from openwavlm.training.records import last_row
from openwavlm.training.run_files import read_summary

log = logging.getLogger(__name__)


def write_summary(
    directory: Path,
    step: int,
    updates: int,
    audio_s: float,
    seconds: float,
    rank: int,
    health: dict[str, Any] | None = None,
    *,
    skipped: int = 0,
) -> dict[str, Any]:
    """Writes the summary on rank 0, with its entries of other commands; returns it.

    Args:
        directory: Run directory.
        step: Updates that are done.
        updates: Updates of the whole run.
        audio_s: Audio of this launch.
        seconds: Wall time of this launch; 0 = it did not train.
        rank: Of this process.
        health: State of each health rule.
        skipped: Skipped updates.
    """
    path = directory / "summary.json"
    kept: dict[str, Any] = {}
    if path.exists():
        try:
            kept = read_summary(path)
        except ValueError as error:
            log.warning("the summary is damaged and written anew, without its other entries: %s", error)
    launch = {"audio_seconds": round(audio_s, 1), "wall_seconds": round(seconds, 1)}
    summary = {
        **kept,
        "format_version": 1,
        "updates": step,
        "complete": step >= updates and skipped < step,
        "skipped_updates": skipped,
        "validation": last_row(directory / "validation.csv"),
        "this_launch": launch if seconds else kept.get("this_launch", launch),
    }
    if health is not None:
        summary["health"] = health
    if rank == 0:
        write_atomically(path, (json.dumps(summary, indent=1) + "\n").encode())
    return summary
