"""The parts of a launch, as the third act hands them to the fourth."""

from dataclasses import dataclass
from typing import Protocol

from openwavlm.batches.loader import StepLoader
from openwavlm.training.callbacks import StepBoundary
from openwavlm.training.control import Control
from openwavlm.training.health.monitor import HealthMonitor
from openwavlm.training.log import RunLog
from openwavlm.training.module import TrainingModule


class Closable(Protocol):
    """Something that is closed at the end of a launch."""

    def close(self) -> None:
        """Ends it."""
        ...


@dataclass(frozen=True)
class Parts:
    """The parts of a launch; further ranks have no `run_log` and no `monitor`."""

    module: TrainingModule
    loader: StepLoader
    boundary: StepBoundary
    control: Control
    watch: Closable
    run_log: RunLog | None
    monitor: HealthMonitor | None
