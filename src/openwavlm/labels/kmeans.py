"""Codebooks of k-means: assignment by one matrix product, and their files (SPEC §4.4)."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from openwavlm.runtime.atomic import atomic_file, write_json
from openwavlm.runtime.files import Fields, read_array, read_json
from openwavlm.runtime.sealed import CHECKSUM, checksum_of, sealed

FORMAT_VERSION = 1
# One fixed size: the last bits of a distance must not depend on the number of frames.
CHUNK_FRAMES = 65_536
MAX_CLUSTERS = 65_536
IMPORTED = "imported"


@dataclass(frozen=True, eq=False)
class Codebook:
    """The centroids of one clustering.

    Attributes:
        centroids: float32 (clusters, dim).
        features: Settings of the features (`MFCC_SETTINGS`, or a teacher's hash and layer); as written to `meta.json`.
        fitted: Record of the fit: index fingerprints, frames, seconds, seed, inertia, usage, perplexity.
        norm: float32 (2, dim): mean and deviation that standardise features before the comparison with the centroids; None =
            features are not standardised.
    """

    centroids: Tensor
    features: dict[str, Any] = field(default_factory=dict)
    fitted: dict[str, Any] = field(default_factory=dict)
    norm: Tensor | None = None

    def __post_init__(self) -> None:
        if self.centroids.ndim != 2 or self.centroids.dtype != torch.float32:
            raise ValueError(
                "centroids must be float32 (clusters, dim), but are "
                f"{self.centroids.dtype} {tuple(self.centroids.shape)}: convert them first"
            )
        if not 1 <= len(self.centroids) <= MAX_CLUSTERS:
            raise ValueError(f"a codebook must have 1 to {MAX_CLUSTERS} clusters (labels are uint16), but has {len(self)}")
        norm, dim = self.norm, self.centroids.shape[1]
        if norm is not None and not (
            norm.shape == (2, dim) and norm.dtype == torch.float32 and norm.isfinite().all() and (norm[1] > 0).all()
        ):
            raise ValueError(
                f"a feature norm must be float32 (2, {dim}), finite means and positive deviations, but is "
                f"{norm.dtype} {tuple(norm.shape)}: copy the folder again or fit it again"
            )

    def __len__(self) -> int:
        return self.centroids.shape[0]

    @cached_property
    def hash(self) -> str:
        """SHA-256 of shape and little-endian bytes of the centroids and of the feature norm, if there is one."""
        digest = hashlib.sha256()
        for tensor in (self.centroids,) if self.norm is None else (self.centroids, self.norm):
            array = np.ascontiguousarray(tensor.cpu().numpy(), dtype="<f4")
            digest.update(str(array.shape).encode() + array.tobytes())
        return digest.hexdigest()

    @cached_property
    def _projection(self) -> tuple[Tensor, Tensor]:
        return self.centroids.square().sum(dim=1), self.centroids.T.contiguous()

    def _scores(self, features: Tensor) -> Tensor:
        """Squared distances less the frame's own square: (frames, clusters)."""
        squares, directions = self._projection
        return torch.addmm(squares, features, directions, alpha=-2)

    def assign(self, features: Tensor | np.ndarray) -> np.ndarray:
        """Nearest centroid of every frame of float32 (frames, dim), not yet standardised: uint16 (frames,).

        Of equally near centroids it is the one with the lowest number.

        Raises:
            ValueError: If the features have another number of dimensions than the centroids, or some are not finite.
        """
        frames = self._checked(features)
        finite = frames.isfinite().all(dim=1)
        if not finite.all():
            raise ValueError(
                f"features must be finite, but {int((~finite).sum())} of {len(frames)} frames are not, the first is frame "
                f"{int((~finite).nonzero()[0])}: look at the audio and at the teacher"
            )
        labels = [self._scores(self._normalised(chunk)).argmin(dim=1) for chunk in frames.split(CHUNK_FRAMES)]
        return torch.cat(labels).numpy().astype(np.uint16)

    def inertia(self, features: Tensor | np.ndarray) -> tuple[float, np.ndarray]:
        """Mean squared distance to the nearest centroid, and int64 (clusters,) frames of each cluster."""
        frames = self._checked(features)
        total, counts = 0.0, np.zeros(len(self), dtype=np.int64)
        for chunk in map(self._normalised, frames.split(CHUNK_FRAMES)):
            scores, labels = self._scores(chunk).min(dim=1)
            total += float((scores.double() + chunk.double().square().sum(dim=1)).sum())
            counts += torch.bincount(labels, minlength=len(self)).numpy()
        return total / max(len(frames), 1), counts

    def _checked(self, features: Tensor | np.ndarray) -> Tensor:
        frames = torch.as_tensor(features)
        if frames.ndim != 2 or frames.shape[1] != self.centroids.shape[1]:
            raise ValueError(
                f"features must be (frames, {self.centroids.shape[1]}) for this codebook, but are {tuple(frames.shape)}: "
                "use the features that it was fitted on"
            )
        return frames.to(torch.float32)

    def _normalised(self, frames: Tensor) -> Tensor:
        return frames if self.norm is None else (frames - self.norm[0]) / self.norm[1]

    def save_array(self, folder: Path) -> None:
        """Writes `codebook.npy` alone or, if there is a norm, with `feature_norm.npy`."""
        for name, tensor in (("codebook.npy", self.centroids), ("feature_norm.npy", self.norm)):
            if tensor is not None:
                with atomic_file(folder / name) as file:
                    np.save(file, tensor.cpu().numpy().astype("<f4"))

    def save(self, folder: Path) -> None:
        """Writes the arrays and then, as the finished mark, `meta.json`."""
        self.save_array(folder)
        meta = {
            "format_version": FORMAT_VERSION,
            "kind": "codebook",
            "hash": self.hash,
            "num_classes": len(self),
            "dim": self.centroids.shape[1],
            "features": self.features,
            "fitted": self.fitted,
        }
        write_json(folder / "meta.json", sealed(meta))

    @classmethod
    def load(cls, folder: Path | str) -> "Codebook":
        """Opens a codebook folder.

        Raises:
            ValueError: If the folder is not a finished codebook, has a newer format, or an array differs from its hash.
        """
        folder = Path(folder)
        fields = read_meta(folder, kind="codebook", newest=FORMAT_VERSION, made_by="openwavlm fit-kmeans")
        if CHECKSUM in fields.values and fields.text(CHECKSUM) != checksum_of(fields.values):
            raise ValueError(f"{fields.where} is damaged (its checksum differs): {fields.remedy}")
        codebook = cls.load_arrays(folder, fields.mapping("features"), fields.mapping("fitted"))
        if codebook.hash != fields.text("hash"):
            raise ValueError(
                f"the array in {folder / 'codebook.npy'} must have the hash {fields.text('hash')[:12]} that its meta.json names, but "
                f"has {codebook.hash[:12]}: {fields.remedy}"
            )
        return codebook

    @classmethod
    def load_arrays(cls, folder: Path, features: dict[str, Any], fitted: dict[str, Any]) -> "Codebook":
        """Reads the arrays of a codebook or a labelling; the caller checks the hash."""
        norm = _load_array(folder / "feature_norm.npy") if features.get("feature_norm") == "standardise" else None
        file = folder / "codebook.npy"
        centroids = _load_array(file)
        try:
            return cls(centroids, features, fitted, norm)
        except ValueError as error:
            raise ValueError(f"{file} is damaged or of another codebook: {error}") from error


@dataclass(frozen=True, eq=False)
class UnknownCodebook(Codebook):
    """Codebook of labels that were imported without their centroids: number of clusters and the hash of the label files.

    Its labels can be trained on, carried over and compared by their hash, but not computed.
    """

    num_classes: int = 1
    content_hash: str = ""

    def __post_init__(self) -> None:
        assert not len(self.centroids) and self.norm is None

    @classmethod
    def of(cls, num_classes: int, content_hash: str, features: dict[str, Any], fitted: dict[str, Any]) -> "UnknownCodebook":
        """Builds the codebook from the values in `meta.json`."""
        return cls(torch.empty(0, 0), features, fitted, None, num_classes, content_hash)

    def __len__(self) -> int:
        return self.num_classes

    @property
    def hash(self) -> str:
        """SHA-256 of the imported label files."""
        return self.content_hash

    def save_array(self, folder: Path) -> None:
        """Writes nothing: there are no centroids."""

    def save(self, folder: Path) -> None:
        """Raises `ValueError`: there are no centroids."""
        self._checked(self.centroids)

    def _checked(self, features: Tensor | np.ndarray) -> Tensor:
        raise ValueError(
            "labels that were imported without their codebook have no centroids, so nothing can be computed with it: import the "
            "codebook too (openwavlm import-codebook) and the labels with codebook=DIR"
        )


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Runs torch on one thread: sums have one order on any number of cores and with any number of workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _load_array(file: Path) -> Tensor:
    return torch.from_numpy(read_array(file, "<f4", shape=(None, None), remedy="copy the folder again or make it again"))


def check_amount(frames: int, clusters: int) -> None:
    """Refuses a number of clusters that is not positive or exceeds the number of frames."""
    if clusters < 1:
        raise ValueError(f"the number of clusters must be positive, but is {clusters}")
    if frames < clusters:
        raise ValueError(f"k-means needs a frame for each cluster, but has {frames} for {clusters}: add audio or lower clusters")


def read_meta(folder: Path, *, kind: str, newest: int, made_by: str) -> Fields:
    """Reads the finished mark `meta.json` of a codebook or a labelling, which `made_by` makes.

    Raises:
        ValueError: If it is absent, unreadable, of another `kind` or of a newer format than `newest`.
    """
    path = folder / "meta.json"
    if not path.is_file():
        raise ValueError(
            f"a folder of {kind} must have meta.json, written last as its finished mark, but {folder} has none: "
            f"run {made_by} (again; finished work is kept) or correct the path"
        )
    fields = read_json(path, remedy=f"copy the folder again, or delete it and make it again with {made_by}")
    version, found = fields.integer("format_version", 1), fields.text("kind")
    if found != kind:
        raise ValueError(f"{folder} must hold {kind}, but its meta.json names {found}: correct the path")
    if version > newest:
        raise ValueError(
            f"{folder} has {kind} of format_version {version}, but this OpenWavLM reads up to {newest}: update OpenWavLM, or restore "
            f"{path.name} if it is damaged"
        )
    return fields
