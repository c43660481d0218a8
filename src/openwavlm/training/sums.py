"""Figures that are summed over micro-batches and ranks: one vector for the all-reduce, each entry by its name."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def of_set(name: str, number: int) -> str:
    """Name of a figure of label set `number`, counted from 0: `NAME`, `NAME_2`, `NAME_3`, …"""
    return name if number == 0 else f"{name}_{number + 1}"


def of_further_sets(names: Sequence[str], sets: int) -> list[str]:
    """`names` of every label set but the first, whose figures have the plain names."""
    return [of_set(name, number) for number in range(1, sets) for name in names]


class NamedSums:
    """Layout of a vector of sums.

    Args:
        names: Name of each entry.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = list(names)
        self._place = {name: place for place, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)

    def zeros(self, device: torch.device | str = "cpu") -> Tensor:
        """float64 (entries,)."""
        return torch.zeros(len(self.names), dtype=torch.float64, device=device)

    def vector(
        self, known: Mapping[str, float], measured: Mapping[str, Tensor] | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """float64 (entries,) of the figures of one micro-batch; 0 for a name that is not given.

        Args:
            known: What the host knows; copied at once, without waiting.
            measured: Tensors of one element on `device`.
            device: Where the sums are.
        """
        values = torch.tensor([known.get(name, 0.0) for name in self.names], dtype=torch.float64).to(device, non_blocking=True)
        for name, value in (measured or {}).items():
            values[self._place[name]] = value
        return values

    def named(self, vector: Tensor) -> dict[str, float]:
        """The entries of a summed vector by name."""
        return dict(zip(self.names, vector.tolist(), strict=True))
