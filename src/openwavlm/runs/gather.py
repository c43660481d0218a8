"""The report of a run, gathered from its directory, its data and its plan: `openwavlm report run=runs/NAME`."""

import hashlib
import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from openwavlm.report.batch_rows import find_mixtures
from openwavlm.report.content import Iteration, read_iteration
from openwavlm.report.page import write_report
from openwavlm.report.rebuild import TrainingData, measure_realised
from openwavlm.report.task_page import write_task_report
from openwavlm.runs.segments import newest_share
from openwavlm.runtime.resources import check_of_the_file
from openwavlm.runtime.sealed import read_sealed
from openwavlm.training.build import make_model
from openwavlm.training.config import RunConfig

_LONGEST_FOLDER = 120


def gather(
    run: Path,
    name: str | None = None,
    *,
    micro_batches: int = 16,
    probes: dict[str, Any] | None = None,
    masked: dict[str, Any] | None = None,
) -> Iteration:
    """Records of a run directory and figures of its data; data that cannot be opened are noted in the iteration.

    Args:
        name: The run's name on the page; by default the folder's.
        micro_batches: Number of batches that are built again to measure masking and mixing.
        probes: Result of `probe_model`; by default `probes.json` of the run, if there is one.
        masked: Masked prediction with its controls, in place of the last row of `validation.csv`, or controls alone, added to that row.

    Raises:
        ValueError: If the folder is no run directory.
    """
    iteration = read_iteration(run, name)
    kept = run / "probes.json"
    iteration.probes = probes or (read_sealed(kept, remedy="delete it, or measure it again") if kept.is_file() else None)
    if masked:
        # Figures of another set of frames do not stand beside those of validation.csv; a mere addition to them does.
        iteration.masked = masked if "cross_entropy" in masked else {**(iteration.masked or {}), **masked}
    try:
        _open_data(iteration, micro_batches)
    except (ValueError, OSError, KeyError) as error:  # KeyError: files of another version
        check_of_the_file(error)
        iteration.notes.append(f"The run's data could not be opened, so its audio, labels and mixtures are not shown: {error}.")
    return iteration


def _open_data(iteration: Iteration, micro_batches: int) -> None:
    with closing(TrainingData(RunConfig.of(iteration.config), newest_share(iteration.run))) as data:
        opened = data.opened
        if iteration.record.get("fingerprints", opened.fingerprints()) != opened.fingerprints():
            raise ValueError("shards, labels or noise have other content now than when the run was launched")
        iteration.data = opened.summary()
        iteration.cluster_counts = opened.label_counts()
        with torch.device("meta"):
            iteration.parameters = sum(p.numel() for p in make_model(data.config, opened.classes).parameters())
        plan = data.schedule.statistics()
        figures = {name: getattr(plan, name) for name in ("padding_share", "lost_share", "too_short")}
        iteration.plan = {**figures, "codebook": opened.num_classes}
        iteration.realised = measure_realised(data, iteration.metrics, micro_batches=micro_batches)
        iteration.mixtures = find_mixtures(data, micro_batches=2 * micro_batches)


def report_runs(runs: Sequence[Path], output: Path | None = None, *, title: str | None = None, micro_batches: int = 16) -> Path:
    """Writes the report of one run, or of several, each compared with the one before; `micro_batches` as in `gather`.

    Args:
        output: Folder to write; by default that of the run, or of several `reports/A+B` beside the last one.
        title: Title of the page; by default of the runs' names.

    Raises:
        ValueError: If a folder is no run directory.
    """
    tasks = [run for run in runs if (run / "symbols.json").is_file()]
    if tasks and len(runs) > 1:
        raise ValueError(f"a page of several runs compares runs of pre-training, but {tasks[0]} is a fine-tuning: give it alone")
    if tasks:
        return write_task_report(tasks[0], output, title=title)
    iterations = [gather(run, micro_batches=micro_batches) for run in runs]
    for iteration, name in zip(iterations, _names(iterations), strict=True):
        iteration.name = name
    names = [iteration.name for iteration in iterations]
    if len(runs) == 1:
        return write_report(output or runs[0], title or f"OpenWavLM: run {names[0]}", iterations)
    folder = re.sub(r"[^\w.+-]+", "-", "+".join(names)).strip("-")
    if len(folder) > _LONGEST_FOLDER:
        folder = f"{len(names)}-runs-{hashlib.sha256(folder.encode()).hexdigest()[:12]}"
    title = title or f"OpenWavLM: runs {', '.join(names[:-1])} and {names[-1]}"
    return write_report(output or runs[-1].parent / "reports" / folder, title, iterations)


def _names(iterations: Sequence[Iteration]) -> list[str]:
    """Distinct names: those of the folders, else those in the configs, else the paths, else numbered."""
    folders = [iteration.name for iteration in iterations]
    configured = [str(iteration.config.get("name")) for iteration in iterations]
    for names in (folders, configured, [str(iteration.run) for iteration in iterations]):
        if len(set(names)) == len(names):
            return names
    return [f"{name} ({place})" for place, name in enumerate(folders, start=1)]
