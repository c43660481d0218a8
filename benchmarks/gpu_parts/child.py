"""Runs one part in a forked process of its own, which may fail, die or run out of time.

The program itself imports everything and never touches a GPU, so that each fork starts in milliseconds and clean.
"""

import contextlib
import faulthandler
import importlib
import json
import logging
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from threadpoolctl import threadpool_limits

from gpu_parts.setting import Setting, SkippedError
from gpu_parts.timebox import Part, Result, sentence
from openwavlm.runtime.atomic import write_json
from openwavlm.runtime.processes import end_with_parent

_TRACEBACK_LINES = 12
_LOG_LINES = 40
_POLL_S = 0.5
_STACKS_S = 1.0  # before the end of a box


class Reporter:
    """Keeps what a part has measured so far, for the case that it does not come to its end.

    Args:
        path: File of the result.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.figures: dict[str, Any] = {}

    def __call__(self, **figures: Any) -> None:
        """Adds figures."""
        self.figures |= figures
        self.write("running")

    def write(self, status: str, **more: Any) -> None:
        """Writes the result."""
        write_json(self._path, {"status": status, "figures": self.figures, **more})


def _serve(part: Part, setting: Setting, path: Path) -> None:
    os.setpgrp()  # so that the part can be ended with everything that it has started
    end_with_parent(signal.SIGKILL)
    multiprocessing.set_start_method("fork", force=True)
    output = os.open(path.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, force=True)
    faulthandler.dump_traceback_later(max(0.5, setting.left_s() - _STACKS_S))  # where it was when its time ran out, in the log
    report = Reporter(path)
    if not setting.full:
        torch.set_num_threads(1)
    try:
        with threadpool_limits(None if setting.full else 1):  # threads of a toy wait for one another
            importlib.import_module(f"gpu_parts.{part.module}").measure(setting, report, **(part.settings or {}))
    except SkippedError as skipped:
        report.write("skipped", reason=str(skipped))
    except (Exception, SystemExit) as error:
        lines = traceback.format_exc().splitlines()[-_TRACEBACK_LINES:]
        report.write("failed", reason=sentence(error), traceback=lines)
    else:
        report.write("done")


def run_in_child(part: Part, setting: Setting, progress: Callable[[Result], None] = lambda result: None) -> Result:
    """Runs a part for at most its box.

    Args:
        part: The part.
        setting: Device, size, folders and time.
        progress: Called now and then with what the part has measured so far.

    Returns:
        `status` (`done`, `skipped`, `failed` or `out of time`), `figures` (all that was measured), and a `reason` and a `traceback`
        where there are any.
    """
    path = setting.folder / f"{part.name}.json"
    path.unlink(missing_ok=True)
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(part, setting, path))
    process.start()
    seen = None
    while process.is_alive() and setting.left_s() > 0:
        process.join(min(_POLL_S, setting.left_s()))
        found = path.stat().st_mtime_ns if path.is_file() else None
        if found != seen:
            seen = found
            progress(json.loads(path.read_text()))
    late = process.is_alive()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)  # also what outlives a part that ended
    if late:
        process.kill()  # if it had no time to become the leader of its group
    process.join()
    result = json.loads(path.read_text()) if path.is_file() else {"status": "running", "figures": {}}
    if result["status"] == "running":
        reason = f"ended after its {setting.box_s:.0f} s" if late else f"its process ended with status {process.exitcode}"
        result |= {"status": "out of time" if late else "failed", "reason": reason, "log": _tail(path.with_suffix(".log"))}
    return result


def _tail(path: Path) -> list[str]:
    return path.read_text(errors="replace").splitlines()[-_LOG_LINES:] if path.is_file() else []


def timed(function: Any, *arguments: Any, **settings: Any) -> tuple[float, Any]:
    """Seconds that a call takes, and its result."""
    began = time.perf_counter()
    found = function(*arguments, **settings)
    return round(time.perf_counter() - began, 3), found
