"""Labels whose centroids nobody has: imported ones, of which only the numbers were kept."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwavlm.labels.kmeans import Codebook

IMPORTED = "imported"


@dataclass(frozen=True, eq=False)
class UnknownCodebook(Codebook):
    """Stands for a codebook that was never given: its number of clusters and a hash of what came from it, but no centroids.

    Labels of it can be trained on, carried over and compared by their hash; nothing can be labelled with it.

    Attributes:
        num_classes: Number of clusters K.
        content_hash: SHA-256 of the imported labels' files: two imports have one codebook if they come from the same files.
    """

    num_classes: int = 1
    content_hash: str = ""

    def __post_init__(self) -> None:
        assert not len(self.centroids) and self.norm is None

    @classmethod
    def of(cls, num_classes: int, content_hash: str, features: dict[str, object], fitted: dict[str, object]) -> "UnknownCodebook":
        """Makes one of what `meta.json` says."""
        return cls(torch.empty(0, 0), features, fitted, None, num_classes, content_hash)

    def __len__(self) -> int:
        return self.num_classes

    @property
    def hash(self) -> str:
        """The hash of the files."""
        return self.content_hash

    def save_array(self, folder: Path) -> None:
        """Writes nothing: there are no centroids."""

    def save(self, folder: Path) -> None:
        """Refuses.

        Raises:
            ValueError: Always.
        """
        raise self._refusal()

    def assign(self, features: Tensor | np.ndarray) -> np.ndarray:
        """Refuses.

        Raises:
            ValueError: Always.
        """
        raise self._refusal()

    def inertia(self, features: Tensor | np.ndarray) -> tuple[float, np.ndarray]:
        """Refuses.

        Raises:
            ValueError: Always.
        """
        raise self._refusal()

    @staticmethod
    def _refusal() -> ValueError:
        return ValueError(
            "labels that were imported without their codebook have no centroids, so nothing can be computed with it: import the "
            "codebook too (data_prep/import_codebook.py) and the labels with codebook=DIR"
        )
