"""Ctrl-C: a program ends at once, with one line and status 130; every command can resume after a kill.

KeyboardInterrupt is no replacement: callbacks of C libraries and finalisers lose it, and a half-finished import turns it into another
error. This module imports nothing slow, so that a program can call it first.
"""

import atexit
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType

Handler = Callable[[int, FrameType | None], object]

INTERRUPTED = 130
_LINE = "interrupted: run the same command again to resume"
# The parent process, or the first rank, writes the line.
_SILENT = "OPENWAVLM_PARENT" in os.environ or os.environ.get("RANK", "0") != "0"


def end_at_interrupt() -> None:
    """Lets Ctrl-C end this program from here on; the first call of a program."""
    if _replace(_ending()):
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # at exit the handler disappears before the process does


def ending_at_interrupt() -> AbstractContextManager[None]:
    """Lets Ctrl-C end this program within the block."""
    return _handling(_ending())


def raising_interrupt() -> AbstractContextManager[None]:
    """Raises `KeyboardInterrupt` at Ctrl-C within the block, for code that has to wait for another process."""
    return _handling(signal.default_int_handler)


@contextmanager
def signals_blocked(*signals: signal.Signals) -> Iterator[None]:
    """Delays signals to this thread until the block ends."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # it blocks, then raises a KeyboardInterrupt that arrived just before
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _handling(handler: Handler) -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    replaced = _replace(handler)
    try:
        yield
    finally:
        if replaced:
            signal.signal(signal.SIGINT, before)


def _replace(handler: Handler) -> bool:
    """Sets the handler, unless this is a thread, or a background job whose shell ignores Ctrl-C."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        return False
    signal.signal(signal.SIGINT, handler)
    return True


def _ending() -> Handler:
    """Handler that ends this process, but none that is forked from it."""
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:
            say_interrupted()
            os._exit(INTERRUPTED)

    return end


def say_interrupted() -> None:
    """Writes that the program was interrupted and how to resume."""
    if not _SILENT:
        shown = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar hides the cursor
        os.write(2, f"{shown}{_LINE}\n".encode())


@contextmanager
def ending_with_reader() -> Iterator[None]:
    """Ends the program silently, with SIGPIPE's status, if the reader of its output has ended, as in `… | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)  # errors are always reported
        if not watched.poll(0):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's last flush
        raise SystemExit(128 + signal.SIGPIPE) from None
