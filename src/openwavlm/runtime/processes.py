"""Processes that end with the one that started them, and a launcher that hands its signals on to them."""

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

from openwavlm.runtime.interrupt import raising_interrupt

log = logging.getLogger(__name__)

_KILLED_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (?:is killed by signal: ([^.]+)|exited unexpectedly)")
PARENT = "OPENWAVLM_PARENT"  # environment variable: the process whose end a training has to answer
_PR_SET_PDEATHSIG = 1
_LEAKED = "ignore:resource_tracker:UserWarning"


def end_with_parent(number: signal.Signals) -> None:
    """Lets the kernel send this signal to this process when its parent ends, however that happens; on Linux only.

    It outlives `exec`. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def answer_parent() -> None:
    """If a command or torchrun started this program as a part of it: SIGTERM, which saves and stops, as soon as that one ends.

    Raises:
        SystemExit: If it has ended already.
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
    """Runs a launcher of processes and sends them, not it, the SIGTERM, SIGINT and SIGUSR1 that this process gets.

    Launchers end their processes by force some time after a signal of their own; left alone they wait until the processes have saved.
    The launcher gets SIGTERM if this process is killed.

    Returns:
        The launcher's exit status.
    """
    child = subprocess.Popen(
        command,
        start_new_session=True,  # a terminal's Ctrl-C reaches this process alone
        preexec_fn=lambda: end_with_parent(signal.SIGTERM),
    )

    def hand_on(number: int, frame: object) -> None:
        for process in children_of(child.pid) or [child.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, hand_on)
    return child.wait()


def run_until_saved(command: list[str], environment: Mapping[str, str]) -> int:
    """Runs a training of this process's group; what interrupts this process stops the training, which may save first.

    Args:
        command: The program and its arguments.
        environment: All of its environment variables.

    Returns:
        Its exit status.

    Raises:
        KeyboardInterrupt: After the training has ended by itself, or has been killed by a second interruption.
    """
    with raising_interrupt():
        child = subprocess.Popen(command, env=environment)
        try:
            return child.wait()
        except KeyboardInterrupt:
            log.warning("interrupted: the training saves and stops; Ctrl-C again ends it at once")
            # A terminal's Ctrl-C has reached it already, that of `kill` has not. A second SIGINT would end it at once, SIGTERM does not.
            child.terminate()
            try:
                child.wait()
            except KeyboardInterrupt:
                child.kill()
                child.wait()
            raise


def ended(status: int) -> str:
    """How a process ended, as the end of a sentence: `was killed (SIGKILL), probably for want of memory: …`.

    Args:
        status: Its exit status, negative for a signal, as `subprocess` has it.
    """
    if status in (-signal.SIGKILL, 128 + signal.SIGKILL):
        return (
            "was killed (SIGKILL), probably for want of memory: lower batch.micro_seconds or loader.workers, or give the job more "
            "memory; the same command goes on"
        )
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}; the same command goes on"
    return f"ended with status {status}"


def start_fork_server() -> None:
    """Starts the fork server of multiprocessing, which imports modules for seconds and must not end at Ctrl-C meanwhile."""
    # After Ctrl-C the tracker removes the semaphores of the pool. That is its work, and no warning to print after the one line.
    sys.warnoptions.append(_LEAKED)
    try:
        resource_tracker.ensure_running()  # the server starts it otherwise, and it ends the block
    finally:
        sys.warnoptions.remove(_LEAKED)
    # The mask is inherited, and the server ignores the signal as soon as it listens. Here the signal waits, it is not lost.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_with_parent() -> None:
    """Ends this worker of a pool as soon as the process that started it has ended, however that happens."""

    def leave() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=leave, daemon=True).start()


def killed_worker(error: BaseException) -> str | None:
    """The sentence for a loader worker that was killed, which torch reports at any place of the program; None for another error."""
    found = _KILLED_WORKER.search(str(error)) if isinstance(error, RuntimeError) else None
    if found is None:
        return None
    how = f" ({found[2].strip()})" if found[2] else ""
    why = "for want of memory"
    way_out = "lower loader.workers or loader.prefetch, or give the job more memory"
    if "Bus error" in how:
        why, way_out = (
            "for want of shared memory",
            "lower loader.workers or loader.prefetch, or enlarge /dev/shm (docker: --shm-size=8g)",
        )
    return f"the loader worker of process {found[1].strip()} was killed{how}, probably {why}: {way_out}; the same command goes on"


def children_of(process: int) -> list[int]:
    """Process ids of the direct children, on Linux; empty elsewhere."""
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):  # it has ended since
            parent = next(line for line in status.read_text().splitlines() if line.startswith("PPid:"))
            if int(parent.split()[1]) == process:
                found.append(int(status.parent.name))
    return found
