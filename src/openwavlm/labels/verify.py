"""Proof that labels are what they claim: checksums of all files, and a sample of rows computed again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openwavlm.labels.features import check_reproducible, extract_feature_sets
from openwavlm.labels.kmeans import Codebook, one_torch_thread
from openwavlm.labels.label_packs import file_checksum, labels_file, rows_file
from openwavlm.labels.sample import keyed_hash
from openwavlm.labels.store import LabelPacks, LabelStore
from openwavlm.labels.unknown_codebook import UnknownCodebook
from openwavlm.runtime.devices import named_device
from openwavlm.runtime.pool import run_jobs
from openwavlm.shards.index import Index
from openwavlm.shards.reader import ShardReader, UnreadableAudio

_ROWS_A_JOB = 64
_JOBS_A_WORKER = 4


@dataclass(frozen=True)
class _Sampled:
    """Rows to be labelled again by one process.

    Attributes:
        index: The shard set.
        store: Its labels.
        codebook: The centroids.
        rows: Rows of the index.
        teacher: The model of layer features.
        device: Where it runs.
    """

    index: Path
    store: LabelStore
    codebook: Codebook
    rows: tuple[int, ...]
    teacher: Path | None
    device: str


@dataclass(frozen=True)
class LabelVerification:
    """What was compared.

    Attributes:
        rows: Rows that were computed again.
        all_rows: Rows that the index has.
        frames: Frames of those that were computed again.
        differing_rows: Rows with at least one other label, or labelled where the other is not.
        differing_frames: Frames with another label.
        damaged_files: Files whose checksum is not the one in `meta.json`.
        tolerance: Share of the frames that may differ.
        computable: False for labels imported without their codebook, of which nothing can be computed again.
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
        """The verdict, for people."""
        if not self.computable:
            verdict = (
                f"{self.all_rows} rows have labels of the length of their audio, or none where it was unreadable; nothing was "
            )
            verdict += "computed again, since the labels were imported without their codebook"
            return verdict + self._damage()
        share = self.rows / max(1, self.all_rows)
        verdict = f"{self.rows} of {self.all_rows} rows ({share:.1%}, {self.frames} frames) computed again: "
        verdict += f"{len(self.differing_rows)} rows ({self.differing_frames} frames) differ"
        if self.differing_rows:
            verdict += f", first row {self.differing_rows[0]}"
            verdict += f"; a share of {self.tolerance:g} of the frames may" if self.tolerance else ""
        return verdict + self._damage()

    def _damage(self) -> str:
        damaged = self.damaged_files
        return f"; {len(damaged)} files are damaged, first {damaged[0]}" if damaged else ""


def labels_of_teacher(labels: Sequence[Path], teacher: Path | None) -> list[Path]:
    """Which of some labellings were made from a layer of a teacher; all of them if none was, so that a superfluous one is refused.

    Raises:
        ValueError: As `LabelPacks.open` does.
    """
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
    """Opens a labelling with all its checks, reads its files against their checksums and computes a sample of rows again.

    Of labels that were imported without their codebook the files, the coverage and the lengths are checked, and nothing is computed.

    Args:
        labels: The labelling.
        index: The shard set.
        teacher: The model that made the features, if they are of a layer.
        share: Share of the rows that is computed again.
        seed: Seed of that choice.
        min_rows: At least so many, if there are.
        checksums: Whether to read all files.
        device: Where the teacher runs: `cpu`, `cuda` or `auto`.
        tolerance: Share of the frames that may differ. Labels that a GPU or another type of CPU made can differ in single frames
            that lie between two centroids; 0 where the same machine made them.
        workers: Processes that compute the sample; a GPU is used by this one alone.

    Returns:
        What was compared and what differs.

    Raises:
        ValueError: If `share` or `tolerance` is outside [0, 1], there is no such device, there are no workers, a teacher is given for
            labels without a codebook, or for what `LabelStore.open` and `check_reproducible` refuse.
    """
    if not (0 <= share <= 1 and 0 <= tolerance <= 1):
        raise ValueError(f"the share of rows and the tolerance must lie in [0, 1], but are {share} and {tolerance}")
    device = named_device(device)
    # All damaged files are named at the end, and what damaged labels differ in is counted.
    packs, store = LabelPacks.open(labels), LabelStore.open(labels, index, at_once_bytes=None)
    if isinstance(packs.codebook, UnknownCodebook):
        if teacher is not None:
            raise ValueError(
                f"no teacher can compute the labels of {labels} again, which were imported without their codebook, but {teacher} was "
                "given: leave it out"
            )
        damaged = _damaged_files(packs) if checksums else []
        return LabelVerification(0, len(index), 0, [], 0, damaged, tolerance, computable=False)
    check_reproducible(packs.codebook.features, labels, teacher)
    damaged = _damaged_files(packs) if checksums else []
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
    """Which rows differ, how many frames were computed, and how many of them differ."""
    reader = ShardReader(job.index)
    differing, frames, differing_frames = [], 0, 0
    with one_torch_thread():
        for row in job.rows:
            stored = job.store.read(row)
            try:
                features = extract_feature_sets([job.codebook.features], reader.read(row), job.teacher, device=job.device)
                computed = job.codebook.assign(features[0])
            except UnreadableAudio:
                computed = stored[:0]
            frames += len(computed)
            if len(stored) != len(computed):
                differing.append(row)
                differing_frames += abs(len(stored) - len(computed))
            elif not np.array_equal(stored, computed):
                differing.append(row)
                differing_frames += int(np.count_nonzero(stored != computed))
    return differing, frames, differing_frames


def _damaged_files(packs: LabelPacks) -> list[Path]:
    expected = {}
    for pack in packs.meta["packs"]:
        expected[labels_file(packs.path, pack["name"])] = pack["labels_checksum"]
        expected[rows_file(packs.path, pack["name"])] = pack["rows_checksum"]
    damaged = [file for file, checksum in expected.items() if file_checksum(file) != checksum]
    if not damaged:
        packs.check()  # the counts of labels, which no checksum of a file holds
    return damaged
