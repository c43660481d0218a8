"""Ctrl-C: a program ends at once, with one line and status 130.

Every command goes on from what a kill leaves behind, so nothing has to be put away first. KeyboardInterrupt would not do: it is lost in
callbacks of C libraries and in finalisers, and a half-finished import turns it into another error. This module imports nothing slow, so
that a program can call it before everything else.
"""

import atexit
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
_LINE = "interrupted: run the same command again to go on"
# The process that started this one, or the first rank, says it.
_SILENT = "OPENWAVLM_PARENT" in os.environ or os.environ.get("RANK", "0") != "0"


def end_at_interrupt() -> None:
    """Lets Ctrl-C end this program from here on; to be called first in a program."""
    if _replace():
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # the work is done, and the handler goes before the process


@contextmanager
def ending_at_interrupt() -> Iterator[None]:
    """Lets Ctrl-C end this program within the block."""
    before = signal.getsignal(signal.SIGINT)
    replaced = _replace()
    try:
        yield
    finally:
        if replaced:
            signal.signal(signal.SIGINT, before)


def _replace() -> bool:
    """Not in a thread, nor where a shell ignores Ctrl-C for a background job."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
        return False
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:  # a process that was forked from it is its own to end
            say_interrupted()
            os._exit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)
    return True


@contextmanager
def raising_interrupt() -> Iterator[None]:
    """Raises `KeyboardInterrupt` at Ctrl-C within the block, for code that has to wait for another process."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def say_interrupted() -> None:
    """Writes the one line."""
    if not _SILENT:
        shown = "\x1b[?25h\n" if os.isatty(2) else ""  # a progress bar hides the cursor
        os.write(2, f"{shown}{_LINE}\n".encode())


@contextmanager
def ending_with_reader() -> Iterator[None]:
    """Ends the program without a word, with SIGPIPE's status, if the reader of its output ended, as in `… | head`."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        watched = select.poll()
        watched.register(sys.stdout.fileno(), 0)  # errors are reported unasked
        if not watched.poll(0):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own last flush
        raise SystemExit(128 + signal.SIGPIPE) from None
