"""The figures of a report as `summary.json` keeps them."""

from typing import Any

from openwavlm.report.content import Iteration


def iteration_summary(iteration: Iteration) -> dict[str, Any]:
    """An iteration's entry: figures on held-out speakers alone, None where not measured."""
    probes, realised = iteration.probes or {}, iteration.realised
    kept = ("micro_batches", "mixed_rows", "rows", "as_recorded")
    measured = realised and {
        "mask_coverage": round(realised.mask_coverage, 5),
        **{name: getattr(realised, name) for name in kept},
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
