"""What a report is made of: the records of one or several runs that follow each other, as plain figures."""

import csv
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml


@dataclass(frozen=True, eq=False)
class Example:
    """One row of a training batch.

    Attributes:
        step: The update that trained on it, from 1.
        name: Key of the utterance and its source.
        clean: float32 (samples,) in −1 … 1, before mixing.
        mixed: float32 (samples,), after mixing; may pass 1.
        start: First overlapped sample.
        length: Overlapped samples; 0 for a row that was not mixed.
        energy_ratio_db: Drawn ratio of mean energies, primary over scaled secondary; NaN for a row that was not mixed.
        overlap_snr_db: The ratio within the overlap, measured on the audio; NaN where one of the two is silent there.
        mask: bool (frames,), True = hidden from the encoder.
        labels: int64 (frames,), pseudo-labels of the clean audio, −1 = none.
    """

    step: int
    name: str
    clean: np.ndarray
    mixed: np.ndarray
    start: int
    length: int
    energy_ratio_db: float
    overlap_snr_db: float
    mask: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Realised:
    """What masking and mixing did, measured on micro-batches that were built again.

    Attributes:
        steps: Updates whose batches were built, from 1.
        micro_batches: How many of them.
        rows: Readable rows.
        mixed_rows: Rows with a mixture.
        noise_rows: Those among them that were mixed with noise.
        mask_coverage: Masked share of the valid frames.
        energy_ratio_db: float64 (mixtures,), ratio over whole utterances, measured on the audio.
        overlap_snr_db: float64 (mixtures,), ratio within the overlap, which is what a listener hears.
        overlap_share: float64 (mixtures,), overlap over the primary's length.
        as_recorded: Whether masked frames and mixed rows of whole steps equal those of `metrics.csv`; None if that cannot be said.
    """

    steps: tuple[int, ...]
    micro_batches: int
    rows: int
    mixed_rows: int
    noise_rows: int
    mask_coverage: float
    energy_ratio_db: np.ndarray
    overlap_snr_db: np.ndarray
    overlap_share: np.ndarray
    as_recorded: bool | None


@dataclass(eq=False)
class Iteration:
    """One training run; what is missing is None or empty, and the report says so.

    Attributes:
        name: As the reader shall see it, "iteration 1: labels from MFCC".
        run: Run directory.
        config: Its `config.yaml`.
        metrics: Columns of `metrics.csv`, NaN where empty.
        validation: Columns of `validation.csv`.
        record: Its `run.json`.
        launch: `this_launch` of its `summary.json`: audio and wall seconds of the last launch.
        findings: Rows of its `health.csv`, as text.
        health: `health` of its `summary.json`: how each rule stands.
        data: Hours and speakers (`OpenData.summary`).
        plan: `padding_share`, `lost_share`, `too_short`, `codebook` (clusters) of the first data epoch.
        masked: `cross_entropy`, `accuracy`, and the same of `unigram` and `count_table`, on held-out speakers.
        probes: What `probe_model` returned.
        cluster_counts: (classes,) frames of each label in (a sample of) the training rows.
        example: A mixture.
        realised: Measured masking and mixing.
        wall_seconds: Duration of the whole training, None if it was not one launch and nobody kept it.
        parameters: Number of the model's parameters.
        notes: Why parts are missing.
    """

    name: str
    run: Path
    config: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, np.ndarray] = field(default_factory=dict)
    validation: dict[str, np.ndarray] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    launch: dict[str, float] = field(default_factory=dict)
    findings: list[dict[str, str]] = field(default_factory=list)
    health: dict[str, Any] | None = None
    data: dict[str, float] | None = None
    plan: dict[str, float] | None = None
    masked: dict[str, Any] | None = None
    probes: dict[str, Any] | None = None
    cluster_counts: np.ndarray | None = None
    example: Example | None = None
    realised: Realised | None = None
    wall_seconds: float | None = None
    parameters: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def updates(self) -> int:
        """Updates that were made."""
        return int(self.metrics["step"][-1]) if len(self.metrics.get("step", ())) else 0

    @property
    def audio_seconds(self) -> float:
        """Audio that was trained on, padding left out."""
        return float(np.nansum(self.metrics.get("audio_s", np.zeros(0))))

    @property
    def audio_s_per_s(self) -> float | None:
        """Speed of the last launch, validation and start included."""
        if self.launch.get("wall_seconds") and self.launch.get("audio_seconds"):
            return float(self.launch["audio_seconds"]) / float(self.launch["wall_seconds"])
        return self.audio_seconds / self.wall_seconds if self.wall_seconds and self.audio_seconds else None


@dataclass(eq=False)
class ReportContent:
    """All that a report shows.

    Attributes:
        title: Name of the job.
        iterations: Runs in order; the last one is the result.
        commands: (what it does, command) to go on with; empty: made from the last run's record.
        warnings: What the reader should know before believing a figure, beside what the report finds itself.
        about: A sentence on the corpus or the purpose.
    """

    title: str
    iterations: list[Iteration]
    commands: list[tuple[str, str]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    about: str = ""


def read_table(path: Path) -> dict[str, np.ndarray]:
    """Columns of a record as float64, NaN for an empty field; a torn last line is left out, a missing file gives no columns."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    whole = [row for row in rows if len(row) == len(header)]
    values = np.array([[float(value) if value else np.nan for value in row] for row in whole], dtype=np.float64)
    return {name: values[:, place] for place, name in enumerate(header)} if whole else {}


def read_findings(path: Path) -> list[dict[str, str]]:
    """Rows of `health.csv` as text; a torn last line is left out, a missing file is empty."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [row for row in rows if None not in row and None not in row.values()]


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def read_iteration(run: Path, name: str | None = None) -> Iteration:
    """The records that a run directory keeps by itself, without opening its data.

    Args:
        run: Run directory.
        name: What the reader shall call it; by default the folder's name.

    Raises:
        ValueError: If the folder is no run directory.
    """
    config = run / "config.yaml"
    if not config.is_file():
        raise ValueError(f"{run} is no run directory (it has no config.yaml): give the folder of a run, as in run=runs/NAME")
    summary = _read_json(run / "summary.json")
    iteration = Iteration(
        name or run.name,
        run,
        config=yaml.safe_load(config.read_text()),
        metrics=read_table(run / "metrics.csv"),
        validation=read_table(run / "validation.csv"),
        record=_read_json(run / "run.json"),
        launch=summary.get("this_launch", {}),
        findings=read_findings(run / "health.csv"),
        health=summary.get("health"),
    )
    audio, wall = iteration.launch.get("audio_seconds", 0.0), iteration.launch.get("wall_seconds", 0.0)
    if wall and audio >= 0.999 * iteration.audio_seconds:
        iteration.wall_seconds = float(wall)
    iteration.masked = _masked_of(iteration.validation)
    return iteration


def _masked_of(validation: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """The last validation pass in the form of `summary.json`."""
    if not len(validation.get("step", ())):
        return None
    last = {name: float(column[-1]) for name, column in validation.items()}
    found: dict[str, Any] = {
        "cross_entropy": last["cross_entropy"],
        "accuracy": last["accuracy"],
        "unigram": {"cross_entropy": last["unigram_cross_entropy"], "accuracy": last["unigram_accuracy"]},
        "nearest_label": {"accuracy": last["repeat_nearest_accuracy"]},
        "frames": int(last["masked_frames"]),
        "step": int(last["step"]),
    }
    if "count_table_cross_entropy" in last:
        found["count_table"] = {
            "cross_entropy": last["count_table_cross_entropy"],
            "accuracy": last["count_table_accuracy"],
        }
    return found
