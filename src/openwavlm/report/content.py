"""Content of a report: the records of one or several runs as plain figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.evaluation.live import read_baselines
from openwavlm.training.checkpoint import checkpoints_in
from openwavlm.training.checkpoint_reader import read_description
from openwavlm.training.health.rules import current_name
from openwavlm.training.records import TEXT_COLUMNS, Record, missing_steps, read_record
from openwavlm.training.run_files import read_config, read_run, read_summary
from openwavlm.training.tables import HEALTH_COLUMNS


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
        facts: Its entry in the `batch.json` of a replay: plain values.
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
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Realised:
    """Realised masking and mixing, measured on micro-batches that were built again.

    Attributes:
        steps: Updates of these batches, from 1.
        rows: Readable rows; `noise_rows` are part of the mixed ones.
        mask_coverage: Masked share of the valid frames.
        energy_ratio_db: float64 (mixtures,), ratio over whole utterances, measured on the audio; `overlap_snr_db` within the overlap.
        overlap_share: float64 (mixtures,), overlap over the primary's length.
        as_recorded: True if masked frames and mixed rows of whole steps equal those of `metrics.csv`; None if unknown.
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
    """One training run; missing parts are None or empty, and the page names them.

    Attributes:
        name: Its name on the page, "iteration 1: labels from MFCC".
        run: Run directory.
        config: Its `config.yaml`.
        metrics: Columns of `metrics.csv`, NaN where empty.
        validation: Columns of `validation.csv`.
        record: Its `run.json`.
        launch: `this_launch` of its `summary.json`: audio and wall seconds of the last launch.
        findings: Rows of its `health.csv`, as text.
        health: `health` of its `summary.json`: state of each rule.
        data: Hours and speakers (`OpenData.summary`).
        plan: `padding_share`, `lost_share`, `too_short`, `codebook` (clusters) of the first data epoch.
        masked: `cross_entropy`, `accuracy`, and the same of `unigram` and `count_table`, on held-out speakers.
        probes: Result of `probe_model`.
        cluster_counts: (classes,) frames of each label in (a sample of) the training rows.
        mixtures: Rows that a second speaker was mixed into.
        realised: Measured masking and mixing.
        wall_seconds: Duration of the whole training, None if unknown, as after several launches.
        parameters: Number of the model's parameters.
        notes: Sentences on damaged or missing parts.
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
    mixtures: list[Example] = field(default_factory=list)
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


def _read(path: Path, prefix: Mapping[str, Any] | None, notes: list[str] | None, columns: list[str] | None = None) -> Record:
    record = read_record(path, prefix=prefix, columns=columns) if path.is_file() else Record([])
    if record.faults:
        sentence = f"{path} is damaged ({'; '.join(record.faults)})"
        if notes is None:
            raise ValueError(f"{sentence}: restore it from a copy")
        notes.append(f"{sentence}; the rows that can be read are shown.")
    return record


def read_table(path: Path, *, prefix: Mapping[str, Any] | None = None, notes: list[str] | None = None) -> dict[str, np.ndarray]:
    """Columns of a record as float64, NaN for an empty field; a missing file gives no columns.

    Args:
        path: The table.
        prefix: A checkpoint's record of its beginning.
        notes: List for a sentence on each damaged part, which is left out; without it a damaged table is refused.

    Raises:
        ValueError: If it is damaged and there are no `notes`.
    """
    record = _read(path, prefix, notes)
    if TEXT_COLUMNS & set(record.columns):
        if notes is None:
            raise ValueError(f"{path} is another table: restore it from a copy")
        notes.append(f"{path} is another table, which is not shown.")
        return {}
    values = np.array([[float(value) if value else np.nan for value in row] for row in record.rows], dtype=np.float64)
    return {name: values[:, place] for place, name in enumerate(record.columns)} if record.rows else {}


def read_findings(path: Path, *, prefix: Mapping[str, Any] | None = None, notes: list[str] | None = None) -> list[dict[str, str]]:
    """Rows of `health.csv` as text; a missing file is empty. `prefix` and `notes` as in `read_table`."""
    record = _read(path, prefix, notes, HEALTH_COLUMNS)
    rows = [dict(zip(record.columns, row, strict=True)) for row in record.rows]
    return [{**row, "rule": current_name(row["rule"])} for row in rows]


def known_tables(run: Path, launches: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Record of the run's tables in the newest checkpoint of the present launch, or in the one from which it resumed."""
    begun_after = launches[-1]["from_step"] if launches else 0
    for path in reversed(checkpoints_in(run / "checkpoints")):
        try:
            description = read_description(path)
        except ValueError:
            continue
        # A later one of an earlier launch was passed over as damaged: the tables were written again since then.
        if description.launch == len(launches) or (description.step or 0) <= begun_after:
            return description.tables
    return {}


def read_iteration(run: Path, name: str | None = None) -> Iteration:
    """Reads the records of a run directory, without its data; damage in a table is noted. The default name is the folder's.

    Raises:
        ValueError: If the folder is no run directory, or `config.yaml`, `run.json` or `summary.json` is damaged.
    """
    config = read_config(run / "config.yaml")
    summary = read_summary(run / "summary.json") if (run / "summary.json").exists() else {}
    record = read_run(run / "run.json") if (run / "run.json").exists() else {}
    launches, notes, health = record.get("segments", []), [], summary.get("health")
    known = known_tables(run, launches)
    for launch in launches:
        notes += [f"When the run resumed: {sentence}." for sentence in launch.get("damaged", {}).values()]
    iteration = Iteration(
        name or run.absolute().name,
        run,
        config=config,
        metrics=read_table(run / "metrics.csv", prefix=known.get("metrics.csv"), notes=notes),
        validation=read_table(run / "validation.csv", prefix=known.get("validation.csv"), notes=notes),
        record=record,
        launch=summary.get("this_launch", {}),
        findings=read_findings(run / "health.csv", prefix=known.get("health.csv"), notes=notes),
        health=None if health is None else {current_name(rule): state for rule, state in health.items()},
        notes=notes,
    )
    steps = iteration.metrics.get("step", np.zeros(0)).astype(int).tolist()
    missing = missing_steps(steps, steps[-1] if steps else 0)
    if missing:
        notes.append(f"{run / 'metrics.csv'} has no row for {missing}: sums and curves are without them.")
    if not record:
        notes.append(f"{run / 'run.json'} is missing, so neither the run's launches nor the content of its data are known.")
    if record.get("first_checkpoint") and not checkpoints_in(run / "checkpoints"):
        notes.append(f"{run / 'checkpoints'} has no checkpoint, but the run wrote some: its weights are lost.")
    if _probes_changed(run / "probe_baselines.json"):
        notes.append(
            f"{run / 'probes.csv'}: the probes' sets or alignments changed during the run: its rows are not all of the same speech."
        )
    notes += [f"{run / table} is missing: its figures are not shown." for table in known if not (run / table).is_file()]
    audio, wall = iteration.launch.get("audio_seconds", 0.0), iteration.launch.get("wall_seconds", 0.0)
    if wall and audio >= 0.999 * iteration.audio_seconds:
        iteration.wall_seconds = float(wall)
    try:
        iteration.masked = _masked_of(iteration.validation)
    except KeyError as error:
        notes.append(f"{run / 'validation.csv'} has no column {error}: masked prediction on held-out speakers is not shown.")
    return iteration


def _probes_changed(baselines: Path) -> bool:
    try:
        return baselines.is_file() and read_baselines(baselines).get("changed") is True
    except ValueError:  # its figures are refused where they are drawn
        return False


def _masked_of(validation: dict[str, np.ndarray]) -> dict[str, Any] | None:
    """The last validation pass in the form of `summary.json`."""
    if not len(validation.get("step", ())):
        return None
    last = {name: float(column[-1]) for name, column in validation.items()}
    controls = ["unigram", *(["count_table"] if "count_table_cross_entropy" in last else [])]
    return {
        "cross_entropy": last["cross_entropy"],
        "accuracy": last["accuracy"],
        **{name: {figure: last[f"{name}_{figure}"] for figure in ("cross_entropy", "accuracy")} for name in controls},
        "nearest_label": {"accuracy": last["repeat_nearest_accuracy"]},
        "frames": int(last["masked_frames"]),
        "step": int(last["step"]),
    }
