"""Exchange between the processes of one program; a single process gets its own values back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from openwavlm.runtime.resources import explained

Result = TypeVar("Result")


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, from 0, and the number of processes."""

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Rank and size in torch's process group; 0 and 1 without a group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, on the device of `tensor`; all-reduced on the CPU, by gloo, which every group has."""
        if self.size == 1:
            return tensor
        total = tensor.to("cpu", copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def of_rank_zero(self, tensor: Tensor) -> Tensor:
        """Rank 0's tensor, which must have the same shape on all ranks."""
        return self.sum(tensor if self.rank == 0 else torch.zeros_like(tensor))

    def gather(self, value: Result) -> list[Result]:
        """Values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Result | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def on_rank_zero(self, function: Callable[[], Result]) -> Result:
        """Runs `function` on rank 0 and broadcasts its result.

        Raises:
            ValueError: With the message of rank 0's error; that error itself in a single process.
        """
        if self.size == 1:
            return function()
        box: list[Any] = list(_attempt(function)) if self.rank == 0 else [None, None]
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise ValueError(box[1])
        return box[0]

    def together(self, function: Callable[[], Result]) -> Result:
        """Runs `function` on all ranks; if one fails, all raise its error instead of waiting for it.

        Raises:
            ValueError: With the message of the lowest rank that failed; the error itself in a single process.
        """
        if self.size == 1:
            return function()
        result, error = _attempt(function)
        errors = [f"rank {rank}: {text}" for rank, text in enumerate(self.gather(error)) if text is not None]
        if errors:
            raise ValueError(errors[0])
        return result


def _attempt(function: Callable[[], Any]) -> tuple[Any, str | None]:
    """Result of a call, or the message of its error."""
    try:
        return function(), None
    except (ValueError, OSError, MemoryError) as error:
        return None, explained(error)


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """`Ranks.on_rank_zero` in torch's process group."""
    return Ranks.current().on_rank_zero(function)


def together(function: Callable[[], Result]) -> Result:
    """`Ranks.together` in torch's process group."""
    return Ranks.current().together(function)
