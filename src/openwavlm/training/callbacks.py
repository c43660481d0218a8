"""Side jobs at a step boundary, in this order: validation, probes, records, checkpoint, stop."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning

from openwavlm.training.checkpoint import checkpoint_path, prune
from openwavlm.training.faults import reach
from openwavlm.training.log import RunLog
from openwavlm.training.module import TrainingModule
from openwavlm.training.settings import Schedules
from openwavlm.training.validation import HeldOut


class StepBoundary(lightning.Callback):
    """Acts after each update, on all ranks alike.

    Args:
        stop_after: Update after which this launch ends, resumable; None = run to the end.
        evaluation: The pass over the held-out set; None = no validation.
        log: The run's records on rank 0, None elsewhere.
        on_start: Called when training begins, to install the run's signal handlers in place of Lightning's.
        paused: Context that leaves validation and saving out of the wall time.
        probe: Called on every rank with the module and the step, every `probe_every` updates; None = no probes.
        before_save: Called on every rank before a checkpoint is written; if it raises, none is written.
        after_save: Called on rank 0 with the step after one was written.
    """

    def __init__(
        self,
        schedules: Schedules,
        directory: Path,
        *,
        updates: int,
        stop_after: int | None,
        evaluation: HeldOut | None,
        log: RunLog | None,
        on_start: Callable[[], None],
        paused: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        probe: Callable[[TrainingModule, int], None] | None = None,
        probe_every: int = 0,
        before_save: Callable[[], None] = lambda: None,
        after_save: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._probe, self._probe_every = probe, probe_every
        self._schedules, self._directory, self._updates = schedules, directory, updates
        self._stop_after, self._evaluation, self._log, self._on_start = stop_after, evaluation, log, on_start
        self._paused, self._before_save, self._after_save = paused, before_save, after_save
        self.requeue = False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """As of Lightning."""
        self._on_start()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Does the jobs that are due."""
        assert isinstance(pl_module, TrainingModule) and pl_module.totals is not None
        step, totals = trainer.global_step, pl_module.totals
        at_end = step >= self._updates
        stop = totals.stop or step == self._stop_after
        control = pl_module.control
        every = self._schedules.validate_every
        pl_module.validation = None
        if self._log is not None:
            self._log.paces(totals.own_us)
        if self._evaluation is not None and every and (at_end or step % every == 0):
            control.note(f"validation after update {step}")
            reach("validation")
            with self._paused(), trainer.precision_plugin.forward_context():
                figures = self._evaluation.run(pl_module.model, pl_module.device)
            pl_module.validation = float(figures[self._evaluation.compared_by])
            if self._log is not None:
                self._log.validation(step, figures)
        if self._probe is not None and (at_end or step % self._probe_every == 0):
            control.note(f"probes after update {step}")
            reach("probes")
            with self._paused():
                self._probe(pl_module, step)
        if at_end or stop or totals.save or step % self._schedules.checkpoint_every == 0:
            pl_module.flush()
            with self._paused():
                self._save(trainer, pl_module, step)
        if stop and not at_end:
            self.requeue = totals.requeue
            trainer.should_stop = True
        pl_module.pace.go()

    def _save(self, trainer: lightning.Trainer, module: TrainingModule, step: int) -> None:
        module.control.note(f"saving after update {step}")
        self._before_save()
        if self._log is not None:
            self._log.sync()
        path = checkpoint_path(self._directory / "checkpoints", step)
        trainer.save_checkpoint(path, weights_only=False)
        if trainer.is_global_zero:
            self._after_save(step)
            kept = self._schedules
            prune(path, kept.keep_last, keep_every=kept.keep_every, keep_best=kept.keep_best)
