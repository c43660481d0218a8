"""Loaders of one rank: global steps for training, a fixed pass for validation.

        plan (main process)                     workers                          main process
step s ─ specs of this rank ──► queue ──► MicroBatchBuilder[spec] ──► queue ──► list of the step's micro-batches
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import KW_ONLY, dataclass, field
from multiprocessing.context import ForkContext, ForkProcess
from multiprocessing.popen_fork import Popen
from typing import Any, Protocol, Self

import torch
from torch.utils.data import DataLoader

from openwavlm.batches.plan import MicroBatchSpec
from openwavlm.batches.schedule import Schedule
from openwavlm.batches.settings import Loading
from openwavlm.runtime.processes import end_with_parent, killed_worker
from openwavlm.runtime.resources import raise_descriptor_limit


@dataclass(frozen=True)
class StepBatch:
    """One global step of one rank, a batch of Lightning."""

    step: int  # the update, from 0
    digest: int  # 40-bit hash of the plans of the step
    micro_batches: list[Any]  # of `PretrainBatch` or `TaskBatch`, in the order in which they run; equally many on every rank

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """Copies the micro-batches to `device`."""
        moved = [batch.to(device, non_blocking=non_blocking) for batch in self.micro_batches]
        return type(self)(self.step, self.digest, moved)


# Signal by which the trainer ends a worker: workers ignore SIGTERM, and Python would wait for them at exit without end.
_END = signal.SIGUSR2


class _Ended(Popen):
    def terminate(self) -> None:
        self._send_signal(_END)  # type: ignore[attr-defined]


class _Worker(ForkProcess):
    _Popen = _Ended


class _Workers(ForkContext):
    Process = _Worker


def _prepare_worker(worker: int) -> None:
    """Makes a worker ignore signals to the process group, which the trainer handles, and end when its trainer is killed."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(_END, lambda number, frame: os._exit(0))  # torch reports any other status, and a kill, as a failure
    end_with_parent(signal.SIGKILL)
    raise_descriptor_limit()


class Builder(Protocol):
    """A map from planned rows to a micro-batch."""

    def __getitem__(self, spec: MicroBatchSpec) -> Any: ...


@dataclass(frozen=True)
class _Sent:
    """Dataset of the workers; returns errors as values, because torch would send only the text of the traceback."""

    builder: Builder

    def __getitem__(self, spec: MicroBatchSpec) -> Any:
        try:
            return self.builder[spec]
        except (ValueError, OSError, MemoryError) as error:
            return error


def received(batches: Iterator[Any]) -> Iterator[Any]:
    """Yields the batches of a `micro_batch_loader`; raises the error of a worker's read.

    Raises:
        ValueError: If the data are not as planned.
        OSError: If the machine fails, with the file; if a worker was killed.
    """
    try:
        for batch in batches:
            if isinstance(batch, Exception):
                raise batch
            yield batch
    except RuntimeError as error:
        ended = killed_worker(error)
        if ended is None:
            raise
        raise OSError(ended) from error


def micro_batch_loader(builder: Builder, specs: Any, loading: Loading) -> DataLoader:
    """DataLoader with the plan as its sampler: specs in, micro-batches out, in order; read it by `received`."""
    return DataLoader(
        _Sent(builder),  # type: ignore[arg-type]
        sampler=specs,
        batch_size=None,
        num_workers=loading.workers,
        prefetch_factor=loading.prefetch if loading.workers else None,
        # A forked worker starts in milliseconds and is a child of the trainer; no worker uses a GPU.
        multiprocessing_context=_Workers() if loading.workers else None,
        worker_init_fn=_prepare_worker,
        pin_memory=torch.cuda.is_available() if loading.pin_memory is None else loading.pin_memory,
        generator=torch.Generator(),  # else the workers' seeds come from the global generator
    )


@dataclass(eq=False)
class StepLoader:
    """Iterates over global steps from `start_step`; its length is `num_steps`, those of the whole run, for Lightning's progress.

    Attributes:
        now: The clock, in seconds.
        waited_s: Seconds spent fetching micro-batches so far.
    """

    schedule: Schedule
    builder: Builder
    loading: Loading
    _: KW_ONLY
    rank: int = 0
    world_size: int = 1
    start_step: int = 0
    num_steps: int
    now: Callable[[], float] = time.monotonic
    waited_s: float = field(default=0.0, init=False)

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[StepBatch]:
        per_step = -(-self.schedule.slots // self.world_size)
        digests: dict[int, int] = {}

        def specs() -> Iterator[MicroBatchSpec]:
            for step in range(self.start_step, self.num_steps):
                plan = self.schedule.step(step, self.rank, self.world_size)
                digests[step] = plan.digest
                yield from plan.specs

        batches = received(iter(micro_batch_loader(self.builder, specs(), self.loading)))
        for step in range(self.start_step, self.num_steps):
            began = self.now()
            micro_batches = [next(batches) for _ in range(per_step)]
            self.waited_s += self.now() - began
            yield StepBatch(step, digests.pop(step), micro_batches)

    # By these two methods Lightning treats the loader as resumable; `start_step` is the position.
    def state_dict(self) -> dict[str, int]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Nothing to restore."""
