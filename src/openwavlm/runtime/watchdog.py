"""Watchdog: reports where a process hangs and ends it, so that it does not occupy a cluster until its time limit.

A Python thread checks the time; where a C call holds the interpreter's lock, the thread of `faulthandler` ends the process a little later.
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

EXIT_CODE = 75  # EX_TEMPFAIL: the same command resumes from the newest checkpoint
_GRACE_S = 30.0


class Watchdog:
    """Ends the process of this rank after `timeout_s` seconds without a note; writes its report also to the file `report`."""

    def __init__(self, timeout_s: float, rank: int, report: Path, *, now: Callable[[], float] = time.monotonic) -> None:
        self._timeout_s, self._rank, self._report, self._now = timeout_s, rank, report, now
        self._doing, self._since = "starting", now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="watchdog")
        self._thread.start()

    def note(self, doing: str) -> None:
        """Records the next action of the process, which counts as progress."""
        self._doing, self._since = doing, self._now()

    def close(self) -> None:
        """Stops the watchdog."""
        self._stop.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        interval = min(5.0, self._timeout_s / 4)
        while not self._stop.wait(interval):
            silent = self._now() - self._since
            if silent > self._timeout_s:
                self._end(silent)
            # Postpones the C thread; not reached while the interpreter's lock is held.
            faulthandler.dump_traceback_later(self._timeout_s + _GRACE_S, exit=True)

    def _end(self, silent: float) -> None:
        lines = [
            f"rank {self._rank} on {socket.gethostname()} (process {os.getpid()}) has made no progress for {silent:.0f} s",
            f"it is at: {self._doing}",
            *_pending_collectives(),
            f"it ends with status {EXIT_CODE}; the same command resumes from the newest checkpoint (trainer.watchdog_s sets the limit)",
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
    """Pending collectives in NCCL's flight recorder (with TORCH_NCCL_TRACE_BUFFER_SIZE set); empty without NCCL."""
    try:
        dump = torch._C._distributed_c10d._dump_nccl_trace  # type: ignore[attr-defined]
        trace: dict[str, Any] = pickle.loads(dump())
    except (AttributeError, RuntimeError):
        return []
    pending = [entry for entry in trace.get("entries", []) if entry.get("state") != "completed"]
    return [f"pending: {entry.get('profiling_name')} {entry.get('input_sizes')} ({entry.get('state')})" for entry in pending[-5:]]
