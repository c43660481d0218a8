"""Verifies labels: checksums of all files, and a sample of rows computed again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openwavlm.labels.features import assign_in_chunks, check_reproducible
from openwavlm.labels.kmeans import Codebook, UnknownCodebook, one_torch_thread
from openwavlm.labels.label_packs import file_checksum, labels_file, rows_file
from openwavlm.labels.labelling import LabelPacks
from openwavlm.labels.sample import keyed_hash
from openwavlm.labels.store import LabelStore
from openwavlm.runtime.devices import named_device
from openwavlm.runtime.pool import run_jobs
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio

_ROWS_A_JOB = 64
_JOBS_A_WORKER = 4


@dataclass(frozen=True)
class _Sampled:
    """Rows that one job labels again."""

    index: Path
    store: LabelStore
    codebook: Codebook
    rows: tuple[int, ...]
    teacher: Path | None
    device: str


@dataclass(frozen=True)
class LabelVerification:
    """Result of verifying a labelling.

    Attributes:
        rows: Number of rows that were computed again.
        all_rows: Number of rows of the index.
        frames: Number of frames that were computed again.
        differing_rows: Rows with at least one differing label, or with labels on one side only.
        differing_frames: Number of frames with a differing label.
        damaged_files: Files that differ from their checksum in `meta.json`.
        tolerance: Share of the frames that may differ.
        computable: False for labels imported without their codebook, which cannot be computed again.
    """

    rows: int
    all_rows: int
    frames: int
    differing_rows: list[int]
    differing_frames: int
    damaged_files: list[Path]
    tolerance: float = 0.0
    computable: bool = True

    @property
    def passed(self) -> bool:
        """True if no file is damaged and no more frames differ than tolerated."""
        return not self.damaged_files and self.differing_frames <= self.tolerance * self.frames

    def sentence(self) -> str:
        """The result as one sentence."""
        verdict = (
            f"{self.rows} of {self.all_rows} rows ({self.rows / max(1, self.all_rows):.1%}, {self.frames} frames) computed again: "
            f"{len(self.differing_rows)} rows ({self.differing_frames} frames) differ"
        )
        if self.differing_rows:
            verdict += f", first row {self.differing_rows[0]}"
            verdict += f"; a share of {self.tolerance:g} of the frames may" if self.tolerance else ""
        if not self.computable:
            verdict = (
                f"{self.all_rows} rows have labels of the length of their audio, or none where it was unreadable; nothing was "
                "computed again, since the labels were imported without their codebook"
            )
        damaged = self.damaged_files
        return verdict + (f"; {len(damaged)} files are damaged, first {damaged[0]}" if damaged else "")


def labels_of_teacher(labels: Sequence[Path], teacher: Path | None) -> list[Path]:
    """Labellings that were made from a layer of a teacher; all if none was, so that a superfluous teacher is refused."""
    of_layers = [path for path in labels if LabelPacks.open(path).codebook.features.get("name") == "layer"]
    return of_layers or (list(labels) if teacher is not None else [])


def verify_labels(
    labels: Path,
    index: Index,
    *,
    teacher: Path | None = None,
    share: float = 0.01,
    seed: int = 0,
    min_rows: int = 16,
    checksums: bool = True,
    device: str = "cpu",
    tolerance: float = 0.0,
    workers: int = 1,
) -> LabelVerification:
    """Opens a labelling with all checks, compares its files with their checksums and computes a sample of rows again.

    Labels that were imported without their codebook are not computed again.

    Args:
        labels: Labelling.
        index: Index of the shard set.
        teacher: Model of the features, if they are of a layer.
        share: Share of the rows that is computed again.
        seed: Seed of the choice of rows.
        min_rows: Smallest number of rows, if the index has as many.
        checksums: Whether to compare the checksums of all files.
        device: Device of the teacher: `cpu`, `cuda` or `auto`.
        tolerance: Share of the frames that may differ: another type of CPU or GPU can label single frames otherwise.
        workers: Processes that compute the sample; with a teacher on a GPU there is one.

    Raises:
        ValueError: If an argument is out of range, the device does not exist, a teacher is given for labels without a codebook, or
            `LabelStore.open` or `check_reproducible` refuse the labels.
    """
    if not (0 <= share <= 1 and 0 <= tolerance <= 1):
        raise ValueError(f"the share of rows and the tolerance must lie in [0, 1], but are {share} and {tolerance}")
    device = named_device(device)
    # No checksums here: all damaged files are named at the end, and differing frames in them are counted.
    packs, store = LabelPacks.open(labels), LabelStore.open(labels, index, at_once_bytes=None)
    computable = not isinstance(packs.codebook, UnknownCodebook)
    if computable:
        check_reproducible(packs.codebook.features, labels, teacher)
    elif teacher is not None:
        raise ValueError(
            f"labels that were imported without their codebook cannot be computed again, but {teacher} was given for {labels}: "
            "leave teacher out"
        )
    damaged = _damaged_files(packs) if checksums else []
    if not computable:
        return LabelVerification(0, len(index), 0, [], 0, damaged, tolerance, computable=False)
    order = np.argsort(keyed_hash(np.asarray(index.pcm[:]), seed), kind="stable")
    rows = np.sort(order[: min(len(index), max(min_rows, round(share * len(index))))])
    parts = np.array_split(rows, max(1, min(len(rows), max(_JOBS_A_WORKER * workers, -(-len(rows) // _ROWS_A_JOB)))))
    jobs = [_Sampled(index.path, store, packs.codebook, tuple(part.tolist()), teacher, device) for part in parts]
    on_gpu = device == "cuda" and packs.codebook.features["name"] == "layer"
    compared = list(run_jobs(_compared, jobs, workers=1 if on_gpu else workers, description="labels again"))
    differing = sorted(row for found, _, _ in compared for row in found)
    frames, differing_frames = (sum(counts) for counts in list(zip(*compared, strict=True))[1:])
    return LabelVerification(len(rows), len(index), frames, differing, differing_frames, damaged, tolerance)


def _compared(job: _Sampled) -> tuple[list[int], int, int]:
    """Differing rows, and the numbers of computed and of differing frames."""
    reader = ShardReader(job.index)
    differing, frames, differing_frames = [], 0, 0
    with one_torch_thread():
        for row in job.rows:
            stored = job.store.read(row)
            try:
                (computed,) = assign_in_chunks([job.codebook], reader.read(row), job.teacher, device=job.device)
            except UnreadableAudio:
                computed = stored[:0]
            frames += len(computed)
            if len(stored) != len(computed):
                differing.append(row)
                differing_frames += abs(len(stored) - len(computed))
            elif wrong := int(np.count_nonzero(stored != computed)):
                differing.append(row)
                differing_frames += wrong
    return differing, frames, differing_frames


def _damaged_files(packs: LabelPacks) -> list[Path]:
    expected = {}
    for pack in packs.meta["packs"]:
        expected[labels_file(packs.path, pack["name"])] = pack["labels_checksum"]
        expected[rows_file(packs.path, pack["name"])] = pack["rows_checksum"]
    damaged = [file for file, checksum in expected.items() if file_checksum(file) != checksum]
    if not damaged:
        packs.check()  # the counts of labels, which no checksum covers
    return damaged
