"""Child processes: they end with their parent and receive its signals."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from pathlib import Path

from openwavlm.runtime.interrupt import raising_interrupt, signals_blocked

log = logging.getLogger(__name__)

_KILLED_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited unexpectedly)")
PARENT = "OPENWAVLM_PARENT"  # environment variable: process id of the parent that a training ends with
_PR_SET_PDEATHSIG = 1
_LEAKED = "ignore:resource_tracker:UserWarning"


def end_with_parent(number: signal.Signals) -> None:
    """Lets the kernel send this signal to this process when its parent ends (prctl(2), Linux only); kept by `exec`."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def answer_parent() -> None:
    """Requests a SIGTERM, which saves and stops, for the moment when the command or torchrun that started this program ends.

    Raises:
        SystemExit: If that process has already ended.
    """
    parent = os.environ.pop(PARENT, None)
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent(signal.SIGTERM)
    if parent is None:
        return
    end_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):
        raise SystemExit(f"process {parent}, which started this training, has ended")


def run_handing_on_signals(command: list[str]) -> int:
    """Runs a launcher and forwards SIGTERM, SIGINT and SIGUSR1 of this process to the launcher's children; returns its exit status.

    A launcher that gets a signal kills its children after a delay; without one it waits until they have saved. The launcher gets SIGTERM
    if this process is killed.
    """
    # In a session of its own, a terminal's Ctrl-C reaches only this process.
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=lambda: end_with_parent(signal.SIGTERM))

    def hand_on(number: int, frame: object) -> None:
        for process in children_of(child.pid) or [child.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, hand_on)
    return child.wait()


def run_until_saved(command: list[str], environment: Mapping[str, str]) -> int:
    """Runs a training in this process's group; an interrupt of this process stops it, and it saves first. Returns its exit status.

    Raises:
        KeyboardInterrupt: After an interrupted training has ended, or was killed by a second interrupt.
    """
    with raising_interrupt():
        child = subprocess.Popen(command, env=environment)
        try:
            return child.wait()
        except KeyboardInterrupt:
            log.warning("interrupted: the training saves and stops; Ctrl-C again ends it at once")
            # The training already has a terminal's Ctrl-C, but no signal of `kill`. A second SIGINT would end it, SIGTERM does not.
            child.terminate()
            try:
                child.wait()
            except KeyboardInterrupt:
                child.kill()
                child.wait()
            raise


def ended(status: int) -> str:
    """Predicate for a process with this exit status, negative for a signal: `was killed (SIGKILL), probably for lack of memory: …`."""
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return (
            "was killed (SIGKILL), probably for lack of memory: lower batch.micro_seconds or loader.workers, or give the job more "
            "memory; the same command resumes"
        )
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}; the same command resumes"
    return f"ended with status {status}"


def start_fork_server() -> None:
    """Starts the fork server of multiprocessing, protected from Ctrl-C during its imports, which take seconds."""
    # After Ctrl-C the tracker removes the semaphores of the pool, and would print a warning about it.
    sys.warnoptions.append(_LEAKED)
    try:
        resource_tracker.ensure_running()  # otherwise the server starts it, and unblocks the signal
    finally:
        sys.warnoptions.remove(_LEAKED)
    # The server inherits the mask, and ignores the signal as soon as it listens. In this process the signal is only delayed.
    with signals_blocked(signal.SIGINT):
        forkserver.ensure_running()


def leave_with_parent() -> None:
    """Ends this worker of a pool as soon as its parent has ended."""

    def leave() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def killed_worker(error: BaseException) -> str | None:
    """Error message for a killed loader worker, which torch reports at any point of the program; None for another error."""
    found = _KILLED_WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    how = f" ({found[2].strip()})" if found[2] else ""
    shared = "Bus error" in how
    lacking = "shared memory" if shared else "memory"
    way_out = "enlarge /dev/shm (docker: --shm-size=8g)" if shared else "give the job more memory"
    return (
        f"the loader worker of process {found[1].strip()} was killed{how}, probably for lack of {lacking}: lower loader.workers or "
        f"loader.prefetch, or {way_out}; the same command resumes"
    )


def children_of(process: int) -> list[int]:
    """Process ids of the direct children, on Linux; empty elsewhere."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has ended
            parent = next(line for line in status.read_text().splitlines() if line.startswith("PPid:"))
            if int(parent.split()[1]) == process:
                found.append(int(status.parent.name))
    return found
