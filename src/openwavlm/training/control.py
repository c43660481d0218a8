"""The exchange between ranks, once a step: units of the loss, hash of the plan, requests to save or stop, and the last step's time.

It is one all-reduce on the host (gloo) from the first forward to the first backward: no device synchronisation, and all ranks act on a
signal at the same step boundary.
"""

import logging
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from openwavlm.runtime.watchdog import Watchdog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepTotals:
    """Sums over all ranks.

    Attributes:
        units: What the loss of this step is divided by: masked frames in pre-training.
        stop: Whether a rank has a request to stop after this step.
        save: Whether a rank has a request to save after this step.
        requeue: Whether a rank got the signal that its job's time is nearly up (SIGUSR1).
        own_us: Microseconds of each rank's own part of the step before, without waiting for others.
    """

    units: int
    stop: bool
    save: bool
    requeue: bool
    own_us: tuple[int, ...]


REQUESTS = ("stop", "save_now")
_early: list[int] = []
_signals: list[int] = []


def keep_early_signals() -> None:
    """Keeps a SIGUSR1 that comes before training begins: Slurm sends it once, and by default it ends the process."""
    _early.clear()
    signal.signal(signal.SIGUSR1, lambda number, frame: _early.append(number))


def signalled() -> bool:
    """Whether a training of this process got a signal to stop."""
    return bool(_signals)


def forget_requests(directory: Path) -> None:
    """Removes request files left over from before this launch."""
    for name in REQUESTS:
        if (directory / name).exists():
            (directory / name).unlink(missing_ok=True)
            log.warning("%s is left over from before this launch and is removed: touch it while the run trains", directory / name)


class Control:
    """The per-step exchange, and the flags that signals and the files `save_now` and `stop` in the run directory set.

    With `alone` there is no exchange, also in one process of several: for measurements that one rank makes after training.
    """

    def __init__(self, directory: Path | None = None, *, alone: bool = False) -> None:
        self._directory = directory
        self._stop = self._save = self._requeue = False
        self.why = ""  # source of this rank's request to stop; empty without one
        self._watchdog: Watchdog | None = None
        self._at_interrupt: Any = None
        self._group: dist.ProcessGroup | None = None
        self._work: dist.Work | None = None
        self._vector = torch.zeros(0, dtype=torch.int64)
        self._digest = 0
        self.world_size, self.rank = 1, 0
        if not alone and dist.is_available() and dist.is_initialized():
            self.world_size, self.rank = dist.get_world_size(), dist.get_rank()
            if self.world_size > 1:
                self._group = dist.new_group(backend="gloo")

    def listen(self, watchdog: Watchdog | None = None) -> None:
        """Turns SIGTERM, SIGINT and SIGUSR1 into a checkpoint and a stop at the next step boundary; a second SIGINT ends at once.

        `watchdog` gets a note of each phase of a step.
        """
        self._watchdog = watchdog
        self._at_interrupt = signal.getsignal(signal.SIGINT)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._on_signal)
        for early in _early:
            self._on_signal(early, None)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._stop:
            raise KeyboardInterrupt
        _signals.append(number)
        self.ask_stop(signal.Signals(number).name)
        self._requeue = self._requeue or number == signal.SIGUSR1

    def note(self, doing: str) -> None:
        """Gives the watchdog the name of this rank's next phase."""
        if self._watchdog is not None:
            self._watchdog.note(doing)

    def close(self) -> None:
        """Ends the watchdog and puts the handler of SIGINT back."""
        if self._at_interrupt is not None:
            signal.signal(signal.SIGINT, self._at_interrupt)
            self._at_interrupt = None
        if self._watchdog is not None:
            self._watchdog.close()
            self._watchdog = None

    def ask_stop(self, why: str) -> None:
        """Requests a checkpoint and a stop at a step boundary, as a signal does."""
        self._stop = True
        self.why = self.why or why

    def _touched(self, name: str) -> bool:
        if self._directory is None or self.rank != 0 or not (path := self._directory / name).exists():
            return False
        path.unlink(missing_ok=True)
        return True

    def begin(self, units: int, digest: int, own_ms: float = 0.0) -> None:
        """Starts the exchange of one step.

        Args:
            units: Those of this rank's part of the step.
            digest: Hash of the plans that the step draws from.
            own_ms: Time of this rank's own part of the step before, milliseconds.
        """
        if self._touched("stop"):
            self.ask_stop("the file stop")
        self._save = self._save or self._touched("save_now")
        self._digest = digest
        flags = [units, int(self._stop), int(self._save), int(self._requeue), digest]
        self._vector = torch.tensor(flags + [0] * self.world_size, dtype=torch.int64)
        self._vector[len(flags) + self.rank] = round(1000 * own_ms)
        self._save = False
        if self._group is not None:
            self._work = dist.all_reduce(self._vector, group=self._group, async_op=True)

    def finish(self) -> StepTotals:
        """Waits for the exchange.

        Raises:
            RuntimeError: If the ranks follow different plans.
        """
        if self._work is not None:
            self._work.wait()
            self._work = None
        units, stop, save, requeue, digests, *own_us = self._vector.tolist()
        if digests != self._digest * self.world_size:
            raise RuntimeError(
                "the ranks planned different data, since their shards, labels or versions differ: compare run.json's fingerprints with the "
                "index on every node"
            )
        return StepTotals(units, stop > 0, save > 0, requeue > 0, tuple(own_us))

    def sum(self, vector: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks of a float64 vector on the host."""
        if self._group is not None:
            self.note("adding up figures over all ranks")
            dist.all_reduce(vector, group=self._group)
        return vector
