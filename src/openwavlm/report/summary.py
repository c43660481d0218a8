"""The figures of a report as `summary.json` keeps them."""

from pathlib import Path
from typing import Any

from openwavlm.report.content import Iteration
from openwavlm.runtime.atomic import write_json
from openwavlm.training.run_files import read_summary


def iteration_summary(iteration: Iteration) -> dict[str, Any]:
    """An iteration's entry: figures on held-out speakers alone, None where not measured."""
    probes, realised = iteration.probes or {}, iteration.realised
    measured = None
    if realised is not None:
        measured = {
            "micro_batches": realised.micro_batches,
            "mask_coverage": round(realised.mask_coverage, 5),
            "mixed_rows": realised.mixed_rows,
            "rows": realised.rows,
            "as_recorded": realised.as_recorded,
        }
    return {
        "name": iteration.name,
        "run": str(iteration.run),
        "updates": iteration.updates,
        "masked": iteration.masked,
        "phones": probes.get("phones"),
        "units": probes.get("units"),
        "speakers": probes.get("speakers"),
        "realised": measured,
        "health": sorted({row["rule"] for row in iteration.findings}) if iteration.health is not None else None,
        "audio_seconds": round(iteration.audio_seconds, 1),
        "wall_seconds": None if iteration.wall_seconds is None else round(iteration.wall_seconds, 1),
    }


def merge_summary(path: Path, iterations: list[Iteration]) -> None:
    """Writes the iterations into a `summary.json` whose other entries stay as they are."""
    kept = read_summary(path) if path.is_file() else {"format_version": 1}
    write_json(path, {**kept, "iterations": [iteration_summary(iteration) for iteration in iterations]})
