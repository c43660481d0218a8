"""What a run writes down while it trains: `metrics.csv`, TensorBoard, and a line for the person who watches."""

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from openwavlm.training.evaluation import VALIDATION_COLUMNS
from openwavlm.training.module import StepRecord
from openwavlm.training.records import CsvRecord, Value

log = logging.getLogger(__name__)

METRIC_COLUMNS = [
    "step",
    "loss",
    "cross_entropy",
    "accuracy",
    "unmasked_accuracy",
    "feature_penalty",
    "logmel_error",
    "grad_norm",
    "lr",
    "masked_frames",
    "mask_coverage",
    "mixed_rows",
    "rows",
    "audio_s",
    "padding_share",
    "unreadable_rows",
    "void",
]
HEALTH_COLUMNS = ["step", "rule", "value", "threshold", "sentence"]


@dataclass(frozen=True)
class Logging:
    """What is logged how often.

    Attributes:
        every_s: Seconds between two progress lines.
        tensorboard_every: Steps between two TensorBoard points.

    Raises:
        ValueError: If a value is not positive.
    """

    every_s: float = 10.0
    tensorboard_every: int = 10

    def __post_init__(self) -> None:
        if not (self.every_s > 0 and self.tensorboard_every > 0):
            raise ValueError(
                f"logger.every_s and logger.tensorboard_every must be positive, but are {self.every_s}, {self.tensorboard_every}"
            )


def metrics_row(record: StepRecord, penalty_weight: float) -> dict[str, Value]:
    """The figures of one update; nothing in it depends on time or machine."""
    sums = record.sums
    masked = max(1.0, sums["masked"])
    cross_entropy, penalty = sums["cross_entropy"] / masked, sums["penalty"] / masked
    return {
        "step": record.step,
        "loss": cross_entropy + penalty_weight * penalty,
        "cross_entropy": cross_entropy,
        "accuracy": sums["correct"] / masked,
        "unmasked_accuracy": sums["unmasked_correct"] / sums["unmasked"] if record.with_unmasked and sums["unmasked"] else None,
        "feature_penalty": penalty,
        "logmel_error": sums["logmel_error"] / masked if sums["logmel_error"] else None,
        "grad_norm": record.grad_norm,
        "lr": record.lr,
        "masked_frames": int(sums["masked"]),
        "mask_coverage": sums["mask_frames"] / max(1.0, sums["valid_frames"]),
        "mixed_rows": int(sums["mixtures"]),
        "rows": int(sums["rows"]),
        "audio_s": sums["samples"] / 16_000,
        "padding_share": 1 - sums["samples"] / max(1.0, sums["padded_samples"]),
        "unreadable_rows": int(sums["unreadable"]),
        "void": int(not record.grad_norm < float("inf")),
    }


class RunLog:
    """Writes the records of a run on the one process that may (rank 0).

    Args:
        directory: The run directory.
        settings: How often.
        last_step: Step of the checkpoint that the run goes on from, 0 for a new run.
        updates: Updates of the whole run.
        penalty_weight: Weight of the feature penalty in the logged loss.
    """

    def __init__(self, directory: Path, settings: Logging, *, last_step: int, updates: int, penalty_weight: float) -> None:
        self._settings, self._updates, self._penalty_weight = settings, updates, penalty_weight
        self._metrics = CsvRecord(directory / "metrics.csv", METRIC_COLUMNS, last_step=last_step)
        self._validation = CsvRecord(directory / "validation.csv", VALIDATION_COLUMNS, last_step=last_step)
        self._health = CsvRecord(directory / "health.csv", HEALTH_COLUMNS, last_step=last_step)
        self._board = SummaryWriter(str(directory / "tensorboard"), purge_step=last_step + 1)
        self._began, self._first = time.monotonic(), last_step
        self._shown, self._audio_s, self._shown_step = self._began, 0.0, last_step
        self.audio_s_total = 0.0

    def update(self, record: StepRecord) -> None:
        """Takes one update's figures."""
        row = metrics_row(record, self._penalty_weight)
        self._metrics.write(row)
        seconds = float(row["audio_s"] or 0)
        self._audio_s += seconds
        self.audio_s_total += seconds
        if record.step % self._settings.tensorboard_every == 0:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._board.add_scalar(f"train/{name}", value, record.step)
        now = time.monotonic()
        if now - self._shown >= self._settings.every_s or record.step == self._updates:
            self._show(row, record.step, now)

    def _show(self, row: dict[str, Value], step: int, now: float) -> None:
        elapsed = max(1e-9, now - self._shown)
        speed = self._audio_s / elapsed
        per_step = elapsed / max(1, step - self._shown_step)
        left = int((self._updates - step) * per_step)
        log.info(
            f"step {step}/{self._updates} | loss {row['loss']:.3f} | masked accuracy {row['accuracy']:.3f} | "
            f"grad norm {row['grad_norm']:.2f} | lr {row['lr']:.2e} | {speed:.0f} audio-s/s | "
            f"{left // 3600}:{left % 3600 // 60:02d}:{left % 60:02d} left"
        )
        self._board.add_scalar("speed/audio_s_per_s", speed, step)
        self._shown, self._audio_s, self._shown_step = now, 0.0, step

    def validation(self, step: int, figures: dict[str, float | int]) -> None:
        """Takes the figures of one validation pass."""
        self._validation.write({"step": step, **figures})
        for name, value in figures.items():
            self._board.add_scalar(f"validation/{name}", value, step)
        log.info(
            f"step {step} | held-out speakers: cross-entropy {figures['cross_entropy']:.3f} (unigram "
            f"{figures['unigram_cross_entropy']:.3f}), masked accuracy {figures['accuracy']:.3f} (commonest label "
            f"{figures['unigram_accuracy']:.3f}, nearest unmasked label {figures['repeat_nearest_accuracy']:.3f})"
        )

    def finding(self, row: dict[str, Value]) -> None:
        """Takes a health rule that fired, by the names of `HEALTH_COLUMNS`."""
        self._health.write(row)
        self._health.sync()

    def figures(self, step: int, values: dict[str, float]) -> None:
        """Takes further figures of an update, for TensorBoard alone."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def sync(self) -> None:
        """Forces the records to disk."""
        self._metrics.sync()
        self._validation.sync()
        self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        self._metrics.close()
        self._validation.close()
        self._health.close()
        self._board.close()
