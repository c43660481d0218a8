"""What happens at a step boundary, in this order: validate, write everything down, save, stop."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning

from openwavlm.training.checkpoint import checkpoint_path, prune
from openwavlm.training.evaluation import Evaluation
from openwavlm.training.log import RunLog
from openwavlm.training.module import PretrainingModule


@dataclass(frozen=True)
class Schedules:
    """How often the step boundary does what; nothing here changes the trajectory.

    Attributes:
        checkpoint_every: Updates between two checkpoints; one is always written at the end and at a stop.
        keep_last: Checkpoints that are kept.
        validate_every: Updates between two validations; one is always made at the end. 0 = never.
        unmasked_every: Updates between two measurements of the accuracy on unmasked frames; 0 = never.

    Raises:
        ValueError: If a number is out of range.
    """

    checkpoint_every: int = 1000
    keep_last: int = 3
    validate_every: int = 1000
    unmasked_every: int = 50

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1 or self.keep_last < 1 or self.validate_every < 0 or self.unmasked_every < 0:
            raise ValueError(
                "callbacks.checkpoint_every and keep_last must be ≥ 1, validate_every and unmasked_every ≥ 0, but are "
                f"{self.checkpoint_every}, {self.keep_last}, {self.validate_every}, {self.unmasked_every}"
            )


class StepBoundary(lightning.Callback):
    """Acts after each update, on all ranks alike.

    Args:
        schedules: How often.
        directory: Run directory.
        updates: Updates of the whole run.
        stop_after: Update after which this launch ends, resumable; None = run to the end.
        evaluation: The held-out pass, or None.
        log: The run's records on rank 0, None elsewhere.
        on_start: Called when training begins.
        paused: A context that leaves validation and saving out of the wall time.
    """

    def __init__(
        self,
        schedules: Schedules,
        directory: Path,
        *,
        updates: int,
        stop_after: int | None,
        evaluation: Evaluation | None,
        log: RunLog | None,
        on_start: Callable[[], None],
        paused: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
    ) -> None:
        self._schedules, self._directory, self._updates = schedules, directory, updates
        self._stop_after, self._evaluation, self._log, self._on_start = stop_after, evaluation, log, on_start
        self._paused = paused
        self.stopped = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Takes the signals over from Lightning."""
        self._on_start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step boundary."""
        assert isinstance(pl_module, PretrainingModule) and pl_module.totals is not None
        step, totals = trainer.global_step, pl_module.totals
        at_end = step >= self._updates
        stop = totals.stop or step == self._stop_after
        every = self._schedules.validate_every
        if self._evaluation is not None and every and (at_end or step % every == 0):
            with self._paused(), trainer.precision_plugin.forward_context():
                figures = self._evaluation.run(pl_module.model, pl_module.device)
            if self._log is not None:
                self._log.validation(step, figures)
        if at_end or stop or totals.save or step % self._schedules.checkpoint_every == 0:
            pl_module.flush()
            with self._paused():
                self._save(trainer, step)
        if stop and not at_end:
            self.stopped = True
            trainer.should_stop = True

    def _save(self, trainer: lightning.Trainer, step: int) -> None:
        if self._log is not None:
            self._log.sync()
        folder = self._directory / "checkpoints"
        trainer.save_checkpoint(checkpoint_path(folder, step), weights_only=False)
        if trainer.is_global_zero:
            prune(folder, self._schedules.keep_last)
