"""Ridge classification in closed form, from sums that fit into memory whatever the number of frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Relative to the mean square of a standardised feature, which is 1.
PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)


@dataclass(frozen=True, eq=False)
class RidgeFamily:
    """One linear classifier a penalty.

    Attributes:
        mean: float32 (dim,) of the training features.
        scale: float32 (dim,), 1 / their standard deviation; 0 for a feature that is constant.
        weight: float32 (penalties, dim, classes), for standardised features.
        bias: float32 (classes,), shares of the classes in training.
    """

    penalties: tuple[float, ...]
    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Regression onto the one-hot classes; (penalties, frames, classes) of features (frames, dim)."""
        standard = (features.float() - self.mean) * self.scale
        return torch.matmul(standard, self.weight) + self.bias

    def correct(self, features: Tensor, labels: Tensor) -> Tensor:
        """Marks frames with the right class; bool (penalties, frames) of features (frames, dim) and labels (frames,)."""
        return self.scores(features).argmax(dim=-1) == labels

    def only(self, penalty: int) -> "RidgeFamily":
        """Keeps the classifier with this penalty's number alone."""
        return RidgeFamily((self.penalties[penalty],), self.mean, self.scale, self.weight[penalty : penalty + 1], self.bias)


class RidgeStatistics:
    """Sums XᵀX, XᵀY and ΣX in float64 of any number of frames, on the features' device."""

    def __init__(self, dim: int, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.frames = 0
        self._gram = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        self._sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self._by_class = torch.zeros(num_classes, dim, dtype=torch.float64, device=device)
        self._counts = torch.zeros(num_classes, dtype=torch.float64, device=device)

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Adds frames: features (frames, dim), labels (frames,) in 0 … classes − 1; frames with a negative label are left out."""
        known = labels >= 0
        x, y = features[known].double(), labels[known]
        self.frames += len(y)
        self._gram.addmm_(x.T, x)
        self._sum += x.sum(dim=0)
        self._by_class.index_add_(0, y, x)
        self._counts += torch.bincount(y, minlength=len(self._counts))

    def solve(self, penalties: Sequence[float] = PENALTIES) -> RidgeFamily:
        """Fits all penalties by one eigendecomposition of the standardised features' correlations.

        Raises:
            ValueError: If a penalty is not positive, or no frame was added.
        """
        if not penalties or min(penalties) <= 0:
            raise ValueError(f"ridge penalties must be positive, but are {list(penalties)}")
        if self.frames == 0:
            raise ValueError("a ridge probe needs labelled frames, but got none: check the alignment of the training set")
        mean, share = self._sum / self.frames, self._counts / self.frames
        covariance = self._gram / self.frames - torch.outer(mean, mean)
        variance = covariance.diagonal()
        alive = variance > 1e-10 * (mean.square() + variance.mean())
        scale = torch.where(alive, variance.clamp(min=1e-300).rsqrt(), 0.0)
        values, vectors = torch.linalg.eigh(covariance * torch.outer(scale, scale))
        target = (self._by_class / self.frames - torch.outer(share, mean)).T * scale[:, None]
        projected = vectors.T @ target
        weight = torch.stack([vectors @ (projected / (values.clamp(min=0) + penalty)[:, None]) for penalty in penalties])
        return RidgeFamily(tuple(penalties), mean.float(), scale.float(), weight.float(), share.float())
