"""The exchange between the processes of one program; alone, every method returns what it was given."""

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
    """This process among those of its group.

    Attributes:
        rank: Its number, from 0.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def current(cls) -> "Ranks":
        """Those of torch's process group; one process without a group."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, on the device of `tensor`; it travels through the CPU, where gloo serves every group."""
        if self.size == 1:
            return tensor
        total = tensor.to("cpu", copy=True)
        dist.all_reduce(total)
        return total.to(tensor.device)

    def of_rank_zero(self, tensor: Tensor) -> Tensor:
        """What rank 0 has in place of `tensor`, which must have the same shape everywhere."""
        return self.sum(tensor if self.rank == 0 else torch.zeros_like(tensor))

    def gather(self, value: Result) -> list[Result]:
        """The value of every process, by rank."""
        if self.size == 1:
            return [value]
        values: list[Result | None] = [None] * self.size
        dist.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def on_rank_zero(self, function: Callable[[], Result]) -> Result:
        """Runs `function` on rank 0 and gives all ranks its result.

        Raises:
            ValueError: With the message of rank 0's error, if there are several processes.
        """
        if self.size == 1:
            return function()
        box: list[Any] = [None, None]
        if self.rank == 0:
            try:
                box[0] = function()
            except (ValueError, OSError, MemoryError) as error:
                box[1] = explained(error)
        dist.broadcast_object_list(box, src=0)
        if box[1] is not None:
            raise ValueError(box[1])
        return box[0]

    def together(self, function: Callable[[], Result]) -> Result:
        """Runs `function` everywhere; if it fails on one process, all raise that error instead of waiting for it.

        Raises:
            ValueError: With the message of the first that failed, if there are several processes.
        """
        if self.size == 1:
            return function()
        result: list[Result] = []
        error = None
        try:
            result.append(function())
        except (ValueError, OSError, MemoryError) as failure:
            error = explained(failure)
        errors = [f"rank {rank}: {text}" for rank, text in enumerate(self.gather(error)) if text is not None]
        if errors:
            raise ValueError(errors[0])
        return result[0]


def on_rank_zero(function: Callable[[], Result]) -> Result:
    """`Ranks.on_rank_zero` in torch's process group."""
    return Ranks.current().on_rank_zero(function)


def together(function: Callable[[], Result]) -> Result:
    """`Ranks.together` in torch's process group."""
    return Ranks.current().together(function)
