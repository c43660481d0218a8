"""A process that makes no progress says where it hangs and ends, instead of holding a cluster's machines until their time is up.

A Python thread looks at the last note of what the process is doing. Should the interpreter itself be held (a C call that keeps the
lock), `faulthandler`'s own thread prints the stacks and ends the process a little later.
"""

import faulthandler
import os
import pickle
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

EXIT_CODE = 75  # EX_TEMPFAIL: the same command goes on from the newest checkpoint
_GRACE_S = 30.0


class Watchdog:
    """Watches one process.

    Args:
        timeout_s: Seconds without a note after which the process ends.
        rank: Rank of the process, for the message.
        report: File that gets the same report as standard error.
        now: The clock, in seconds.
    """

    def __init__(self, timeout_s: float, rank: int, report: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._rank, self._report, self._now = timeout_s, rank, report, now
        self._doing, self._since = "starting", now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def note(self, doing: str) -> None:
        """Takes down what the process is about to do, which is progress."""
        self._doing, self._since = doing, self._now()

    def close(self) -> None:
        """Ends the watch."""
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        interval = min(5.0, self._timeout_s / 4)
        while not self._stop.wait(interval):
            silent = self._now() - self._since
            if silent > self._timeout_s:
                self._bark(silent)
            # Only reached while this thread gets the interpreter: else the C thread below is not put off.
            faulthandler.dump_traceback_later(self._timeout_s + _GRACE_S, exit=True)

    def _bark(self, silent: float) -> None:
        lines = [
            f"rank {self._rank} on {socket.gethostname()} (process {os.getpid()}) has made no progress for {silent:.0f} s",
            f"it is at: {self._doing}",
            *_pending_collectives(),
            f"it ends with status {EXIT_CODE}; the same command goes on from the newest checkpoint (trainer.watchdog_s sets the patience)",
        ]
        self._report.parent.mkdir(parents=True, exist_ok=True)
        with self._report.open("a") as file:
            for stream in (sys.stderr, file):
                _write(stream, lines)
        os._exit(EXIT_CODE)


def _write(stream: TextIO, lines: list[str]) -> None:
    stream.write("watchdog: " + "\nwatchdog: ".join(lines) + "\n")
    stream.flush()
    faulthandler.dump_traceback(file=stream, all_threads=True)
    stream.flush()


def _pending_collectives() -> list[str]:
    """What NCCL's flight recorder knows to be under way (TORCH_NCCL_TRACE_BUFFER_SIZE must be set); nothing without NCCL."""
    try:
        dump = torch._C._distributed_c10d._dump_nccl_trace  # type: ignore[attr-defined]
        trace: dict[str, Any] = pickle.loads(dump())
    except (AttributeError, RuntimeError):
        return []
    pending = [entry for entry in trace.get("entries", []) if entry.get("state") != "completed"]
    return [f"pending: {entry.get('profiling_name')} {entry.get('input_sizes')} ({entry.get('state')})" for entry in pending[-5:]]
