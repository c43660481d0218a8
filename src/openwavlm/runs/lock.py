"""One run, one writer: an advisory file lock on this host, a heartbeat for the others.

The record in the file names the writer and is renewed every 15 s. The lock of a writer on another host, or on a file system without
locks, is invisible, so a launch watches the record: a change refuses the launch; after 120 s without one, by the launch's own monotonic
clock, it takes over. The time in the record is never compared with a clock, since hosts differ by days. A writer ends at once if it finds
another's record in place of its own, after a suspension; it writes a deleted file again.
"""

import contextlib
import fcntl
import json
import logging
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

from openwavlm.runtime.resources import naming

HEARTBEAT_S = 15.0
DEAD_AFTER_S = 120.0
_PROGRESS_S = 30.0
TAKEN_OVER = 76  # exit status of a writer that was taken over
_RECORD_BYTES = 512
log = logging.getLogger(__name__)


class RunLock:
    """Lock of a run directory, by `fcntl`: with `flock` a killed run stays locked as long as its forked loader workers live.

    Raises:
        ValueError: If a live launch holds the run.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "lock"
        self._ours = {"host": socket.gethostname(), "pid": os.getpid(), "began": time.time()}
        self._stop = threading.Event()
        with naming(self.path):
            self._file = self._open()
            self._enter()
            while not self._is_in_place():  # deleted or replaced meanwhile: the new file is the lock
                os.close(self._file)
                self._file = self._open()
                self._enter()
            self._write()
        self._thread = threading.Thread(target=self._beats, daemon=True)
        self._thread.start()

    def _open(self) -> int:
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def _enter(self) -> None:
        """Locks the open file, if need be after a wait for its holder's end."""
        free = self._lock()
        holder = self._holder()
        if free is False or (holder and not _is_dead(holder, locked=bool(free)) and self._lives(holder)):
            os.close(self._file)
            raise ValueError(
                f"the run {self.path.parent} is being written by {_who(holder)}: wait for it, stop it, or choose another name "
                f"(a writer on another host counts as dead when a launch has seen no heartbeat of it for {DEAD_AFTER_S:.0f} s)"
            )

    def _is_in_place(self) -> bool:
        """True if the open file is the one at the path: a lock on a deleted file refuses no launch."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return False
        return os.path.samestat(found, os.fstat(self._file))

    def _lock(self) -> bool | None:
        """Locks the file: True; False if another process holds it; None if this file system has no locks."""
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            log.warning("%s cannot be locked (%s): a second launch is refused by its heartbeat alone", self.path, error.strerror)
            return None
        return True

    def _lives(self, holder: dict[str, Any]) -> bool:
        """Waits until the holder's record changes (True), has not changed for 120 s, or is released."""
        began = logged = time.monotonic()
        log.warning("%s is held by %s: waiting %.0f s for its next heartbeat", self.path, _who(holder), DEAD_AFTER_S)
        while (now := time.monotonic()) - began < DEAD_AFTER_S:
            if now - logged >= _PROGRESS_S:
                logged = now
                log.warning("no heartbeat of %s so far, %.0f s left", _who(holder), DEAD_AFTER_S - (now - began))
            time.sleep(HEARTBEAT_S / 15)
            found = self._holder()
            if not found:
                return False
            if found != holder:
                return True
        log.warning("no heartbeat of %s in %.0f s: it is dead, and the run is taken over", _who(holder), DEAD_AFTER_S)
        return False

    def _holder(self) -> dict[str, Any]:
        try:
            holder = json.loads(os.pread(self._file, _RECORD_BYTES, 0) or b"{}")
        except ValueError:
            return {}
        return holder if isinstance(holder, dict) else {}

    def _write(self) -> None:
        record = {**self._ours, "job": os.environ.get("SLURM_JOB_ID"), "heartbeat": time.time()}
        # One write of constant length, so that no reader finds half a record.
        os.pwrite(self._file, json.dumps(record).ljust(_RECORD_BYTES).encode(), 0)

    def _beats(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                if not self._is_in_place():
                    deleted, self._file = self._file, self._open()
                    os.close(deleted)
                    log.warning("%s was deleted while this run trains: it is written again", self.path)
                    if self._lock() is False:
                        self._end(self._holder())
                holder = self._holder()
                if holder and {name: holder.get(name) for name in self._ours} != self._ours:
                    self._end(holder)
                self._write()

    def _end(self, holder: dict[str, Any]) -> None:
        log.critical("%s took the run %s over: ending, since only one launch writes to a run", _who(holder), self.path.parent)
        os._exit(TAKEN_OVER)

    def release(self) -> None:
        """Releases the lock."""
        self._stop.set()
        self._thread.join()
        with naming(self.path):
            os.ftruncate(self._file, 0)
            os.close(self._file)


def _is_dead(holder: dict[str, Any], *, locked: bool) -> bool:
    """True if a holder on this host has ended: it has no lock or, without locks, no process."""
    if holder.get("host") != socket.gethostname():
        return False
    if locked:
        return True
    try:
        os.kill(int(holder["pid"]), 0)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return isinstance(error, ProcessLookupError)
    return False


def _who(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
