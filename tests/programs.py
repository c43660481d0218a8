"""Runs a program as a user would, in a process forked from a server that has imported everything: a second instead of ten."""

import multiprocessing
import os
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

from patience import HANG_S

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Outcome:
    """What a program left: its exit status and all that it printed."""

    status: int
    stdout: str
    stderr: str

    def error(self) -> str:
        """The one `error:` line of a refusal; fails if there is more or less than that."""
        lines = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        assert self.status == 2 and len(lines) == 1 and "Traceback" not in self.stderr, self
        return lines[0].removeprefix("error: ")


def _main(command: list[str], directory: Path, stdout: Path, stderr: Path) -> None:
    multiprocessing.set_start_method("fork", force=True)  # as in a program of its own, where loader workers are forked
    for number, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.chdir(directory)
    sys.argv = command
    if command[0] == "openwavlm":
        runpy.run_module("openwavlm", run_name="__main__")
    else:
        runpy.run_path(str(REPOSITORY / command[0]), run_name="__main__")


def run_program(directory: Path, *command: str) -> Outcome:
    """Runs `command` (`train.py …`, `data_prep/X.py …` or `openwavlm …`) with `directory` as its working directory."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openwavlm.runs.launch", "openwavlm.cli.train"])
    stdout, stderr = directory / "stdout.txt", directory / "stderr.txt"
    process = context.Process(target=_main, args=(list(command), directory, stdout, stderr))
    process.start()
    process.join(HANG_S)
    assert process.exitcode is not None, f"{command} hangs"
    return Outcome(process.exitcode, stdout.read_text(), stderr.read_text())
