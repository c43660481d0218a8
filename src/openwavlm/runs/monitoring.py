"""The health rules of one run, from its config and data (docs/training.md, "Is this normal?")."""

from collections.abc import Mapping
from typing import Any

from openwavlm.batches.schedule import Schedule
from openwavlm.batches.sources import OpenData
from openwavlm.runs.run_directory import same_data
from openwavlm.training.config import RunConfig
from openwavlm.training.control import Control
from openwavlm.training.health.figures import HealthFigures
from openwavlm.training.health.judgement import Known, References
from openwavlm.training.health.monitor import HealthMonitor, WallClock
from openwavlm.training.health.references import label_references
from openwavlm.training.log import RunLog


def make_figures(config: RunConfig, opened: OpenData, rank: int) -> HealthFigures | None:
    """Collector of a rank's figures; None where the rules are switched off."""
    if not config.health.enabled:
        return None
    channels = config.model.conv_dims[-1]
    return HealthFigures(config.health.every, num_classes=opened.num_classes, channels=channels, rank=rank)


def make_monitor(
    config: RunConfig,
    opened: OpenData,
    schedule: Schedule,
    run_log: RunLog,
    control: Control,
    clock: WallClock,
    *,
    on_cpu: bool,
    start: int,
    state: Mapping[str, Any] | None,
) -> HealthMonitor | None:
    """Health rules on rank 0; None where they are switched off.

    The baselines of the labels are computed once; a resumed run on the same data reads them from its checkpoint.

    Args:
        start: Updates that are done.
        state: `openwavlm` of this run's checkpoint; None for a new run.
    """
    settings, updates = config.health, config.optim.updates
    if not settings.enabled:
        return None
    kept = state.get("health") if state else None
    same = bool(state and kept and same_data(state["fingerprints"], opened.fingerprints()))
    references = References(**kept["references"]) if same and kept else None
    if references is None or not references.complete(settings, updates):
        references = label_references(opened, schedule, config.masking, config.seed, settings, start=start, updates=updates)
    from_random = not (config.branch_from or config.init_from)
    known = Known(settings, updates, from_random=from_random, references=references, on_cpu=on_cpu)
    return HealthMonitor(
        known,
        clock,
        on_finding=run_log.finding,
        on_figures=run_log.figures,
        stop=lambda: control.ask_stop("health.action=stop"),
        state=kept,
    )
