"""Waiting for other processes, however busy the machine is: what has not happened after ten minutes hangs."""

import time
from collections.abc import Callable

HANG_S = 600.0


def wait_until(happened: Callable[[], object], *, while_true: Callable[[], object] = lambda: True, poll_s: float = 0.05) -> None:
    """Returns once `happened` is true; fails where `while_true` ends before, or after `HANG_S`."""
    deadline = time.monotonic() + HANG_S
    while not happened():
        assert while_true(), "what was waited for can no longer happen"
        assert time.monotonic() < deadline, "it hangs"
        time.sleep(poll_s)
