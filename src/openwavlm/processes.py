"""Processes that end with the one that started them."""

import ctypes
import os
import signal
import sys

PARENT = "OPENWAVLM_PARENT"  # environment variable: the process whose end a training has to answer
_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> None:
    """Lets the kernel send this signal to this process when its parent ends, however that happens; on Linux only.

    It outlives `exec`. Source: prctl(2), PR_SET_PDEATHSIG.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def answer_parent() -> None:
    """If a command started this program as one of its stages: SIGTERM, which saves and stops, as soon as that command ends.

    Raises:
        SystemExit: If it has ended already.
    """
    parent = os.environ.pop(PARENT, None)
    if parent is None:
        return
    end_with_parent(signal.SIGTERM)
    if os.getppid() != int(parent):
        raise SystemExit(f"process {parent}, which started this training, has ended")
