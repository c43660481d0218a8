"""Records of a running training: `metrics.csv`, TensorBoard, trackers and progress lines."""

import contextlib
import logging
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from torch.utils.tensorboard import SummaryWriter

from openwavlm.runtime.resources import naming
from openwavlm.training.heat_map import baselines_text, heat_map
from openwavlm.training.records import Value
from openwavlm.training.settings import Logging
from openwavlm.training.sums import StepRecord
from openwavlm.training.tables import RunTables
from openwavlm.training.trackers import Tracker

log = logging.getLogger(__name__)


def _let_the_main_thread_raise() -> None:
    """Suppresses the message of a file error in TensorBoard's thread, since its next call raises it in the main thread."""
    before = threading.excepthook
    if getattr(before, "of_openwavlm", False):
        return

    def hook(failed: threading.ExceptHookArgs) -> None:
        if not (isinstance(failed.exc_value, OSError) and type(failed.thread).__name__ == "_AsyncWriterThread"):
            before(failed)

    hook.of_openwavlm = True  # type: ignore[attr-defined]
    threading.excepthook = hook


class Figures(Protocol):
    """Columns and sentences of a run's records.

    Attributes:
        validation: Columns of `validation.csv` after `step`.
    """

    validation: list[str]

    def row(self, record: StepRecord) -> dict[str, Value]:
        """A row of `metrics.csv`; the columns are those of any record."""
        ...

    def progress(self, row: Mapping[str, Value]) -> str:
        """The part of a progress line that is about learning."""
        ...

    def validated(self, figures: Mapping[str, float | int]) -> str:
        """The sentence on a pass over the held-out set."""
        ...


class RunLog:
    """Writes the records of a run on the one process that may (rank 0).

    Args:
        last_step: Step of the checkpoint from which the run resumes, 0 for a new run.
        figures: Columns and sentences of the records.
        trackers: Trackers beside TensorBoard; closed with the log.
        prefixes: Of `records.known_records`.
        now: The clock, in seconds.
    """

    def __init__(
        self,
        directory: Path,
        settings: Logging,
        *,
        last_step: int,
        updates: int,
        figures: Figures,
        trackers: Sequence[Tracker] = (),
        prefixes: Mapping[str, Mapping[str, Any]] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._trackers, self._now = trackers, now
        self._settings, self._updates, self._figures = settings, updates, figures
        measured = list(figures.row(StepRecord(0, defaultdict[str, float](float), 0.0, 0.0, with_unmasked=False)))
        validated = ["step", *figures.validation]
        self.tables = RunTables(directory, metrics=measured, validation=validated, last_step=last_step, prefixes=prefixes or {})
        self._directory = directory
        _let_the_main_thread_raise()
        with self._to_board():
            self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=last_step + 1)
        self._began = now()
        self._shown, self._audio_s, self._shown_step = self._began, 0.0, last_step
        self.audio_s_total = 0.0
        self._own_us: list[int] = []

    def update(self, record: StepRecord) -> None:
        """Writes one update's figures."""
        row = self._figures.row(record)
        self.tables.metrics.write(row)
        seconds = float(row["audio_s"] or 0)
        self._audio_s += seconds
        self.audio_s_total += seconds
        if record.step % self._settings.tensorboard_every == 0:
            self._scalars("train", {name: value for name, value in row.items() if name != "step"}, record.step)
        now = self._now()
        if now - self._shown >= self._settings.every_s or record.step == self._updates:
            self._show(row, record.step, now)

    def _scalars(self, group: str, values: Mapping[str, Value], step: int) -> None:
        """Writes the figures that are not None to TensorBoard and the trackers."""
        known = {f"{group}/{name}": float(value) for name, value in values.items() if value is not None}
        self.figures(step, known)
        for tracker in self._trackers:
            tracker.scalars(known, step)

    def _to_board(self) -> contextlib.AbstractContextManager[None]:
        return naming(self._directory / "tensorboard")

    def paces(self, own_us: tuple[int, ...]) -> None:
        """Adds the time of each rank's own part of a step, microseconds."""
        self._own_us = [before + now for before, now in zip(self._own_us or [0] * len(own_us), own_us, strict=True)]

    def _slowest(self) -> str:
        """The slowest rank since the last line, with its time over the median rank's."""
        own_us, self._own_us = self._own_us, []
        if len(own_us) < 2 or not any(own_us):
            return ""
        slowest = max(range(len(own_us)), key=own_us.__getitem__)
        return f" | slowest rank {slowest} ({own_us[slowest] / max(1, statistics.median_low(own_us)):.2f} x the median)"

    def _show(self, row: dict[str, Value], step: int, now: float) -> None:
        elapsed = max(1e-9, now - self._shown)
        speed = self._audio_s / elapsed
        per_step = elapsed / max(1, step - self._shown_step)
        left = int((self._updates - step) * per_step)
        log.info(
            f"step {step}/{self._updates} | {self._figures.progress(row)} | "
            f"grad norm {row['grad_norm']:.2f} | lr {row['lr']:.2e} | {speed:.0f} audio-s/s | "
            f"{left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d} left{self._slowest()}"
        )
        self._scalars("speed", {"audio_s_per_s": speed}, step)
        self._shown, self._audio_s, self._shown_step = now, 0.0, step

    def validation(self, step: int, figures: dict[str, float | int]) -> None:
        """Writes the figures of one validation pass."""
        self.tables.validation.write({"step": step, **figures})
        self._scalars("validation", figures, step)
        log.info("step %d | %s", step, self._figures.validated(figures))

    def finding(self, row: dict[str, Value]) -> None:
        """Writes a row of `health.csv`."""
        self.tables.health.write(row)
        self.tables.health.sync()

    def figures(self, step: int, values: dict[str, float]) -> None:
        """Writes figures of an update to TensorBoard alone."""
        with self._to_board():
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def probes(self, step: int, layers: list[float], baselines: dict[str, float], seconds: float) -> None:
        """Writes each layer's phone accuracy on development speakers, and the seconds that the probe took."""
        columns = ["step", *(f"layer_{layer}" for layer in range(len(layers)))]
        figures = dict(zip(columns[1:], layers, strict=True))
        self.tables.probes(columns).write({"step": step, **figures})
        self._scalars("probes", figures, step)
        best = max(range(len(layers)), key=layers.__getitem__)
        log.info(
            f"step {step} | phones of development speakers: layer {best} {layers[best]:.3f} (baselines: {baselines_text(baselines)}); "
            f"it took {seconds:.1f} s"
        )
        figure = heat_map(self._directory / "probes.csv", baselines)
        with self._to_board():
            self._board.add_figure("probes/phones by layer", figure, step)

    def sync(self) -> None:
        """Forces the records to disk."""
        self.tables.sync()
        with self._to_board():
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        self.tables.close()
        with self._to_board():
            self._board.close()
        for tracker in self._trackers:
            tracker.close()
