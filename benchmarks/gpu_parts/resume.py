"""kill -9 in the middle of an update, and the same command again: the same batches, and losses as between two undisturbed runs.

On a CPU the losses are bit-equal. A GPU adds some gradients up in an order of its own, so two undisturbed runs are the yardstick.
"""

import csv
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import lightning

from gpu_parts.child import Reporter
from gpu_parts.setting import Setting
from gpu_parts.watch import train
from openwavlm.batches.loader import StepBatch
from openwavlm.runtime.processes import end_with_parent

TOLERANCE = 1e-3  # of the loss, relative; and three times the largest difference of two undisturbed runs, if that is more


class Digests(lightning.Callback):
    """Writes a line for each update that begins: its number, and a hash of everything in its micro-batches."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: StepBatch, batch_idx: int) -> None:
        """Writes the line."""
        hashes = " ".join(micro.fingerprint() for micro in batch.micro_batches)
        with self._path.open("a") as file:
            file.write(f"{batch.step + 1} {hashes}\n")


def _launch(command: list[str], directory: Path, fault: str) -> None:
    end_with_parent(signal.SIGKILL)
    if fault:
        os.environ["OPENWAVLM_FAULT"] = fault
    train(command, directory, Digests(directory.with_suffix(".digests")))


def launched(command: list[str], directory: Path, fault: str = "") -> int:
    """Exit status of a launch in a process of its own; negative for a signal."""
    # Forked: nothing in this process has touched a GPU.
    process = multiprocessing.get_context("fork").Process(target=_launch, args=(command, directory, fault))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def digests(directory: Path) -> list[tuple[int, str]]:
    """(update, hash) of each update that began, in order, over all launches of a run."""
    lines = directory.with_suffix(".digests").read_text().splitlines()
    return [(int(line.split(" ", 1)[0]), line.split(" ", 1)[1]) for line in lines]


def difference(first: Path, second: Path) -> dict[str, Any]:
    """Largest relative difference of the losses and of the gradient norms of two runs, and whether all are equal."""
    tables = [list(csv.DictReader((run / "metrics.csv").read_text().splitlines())) for run in (first, second)]
    if [row["step"] for row in tables[0]] != [row["step"] for row in tables[1]]:
        raise ValueError(f"the runs have records of {len(tables[0])} and {len(tables[1])} updates")
    found = {}
    for name in ("loss", "grad_norm"):
        pairs = [(float(a[name]), float(b[name])) for a, b in zip(*tables, strict=True)]
        found[name] = max(abs(a - b) / abs(b) for a, b in pairs)
    return found | {"bit_equal": all(a == b for a, b in zip(*tables, strict=True))}


def measure(setting: Setting, report: Reporter) -> None:
    """Reports whether the batches are bit-equal and by how much the losses differ."""
    updates, killed_at, every = (40, 25, 10) if setting.full else (10, 8, 3)
    experiment, size = ("wavlm_small", ("batch.seconds=350",)) if setting.full else ("wavlm_small", ())
    schedule = (f"optim.updates={updates}", "optim.warmup_updates=2", f"callbacks.checkpoint_every={every}")
    command = setting.training(experiment, *size, *schedule)
    report(experiment=experiment, overrides=[*size, *schedule], killed_in_update=killed_at, checkpoint_every=every)
    runs = [setting.folder / f"run-resume-{name}" for name in ("undisturbed", "again", "killed")]
    statuses = [launched(command, runs[0]), launched(command, runs[2], f"step:{killed_at}:KILL"), launched(command, runs[2])]
    if statuses != [0, -signal.SIGKILL, 0]:
        raise ValueError(f"the launches (undisturbed, killed, resumed) ended with {statuses}, not with [0, -9, 0]")
    expected, found = dict(digests(runs[0])), digests(runs[2])
    report(
        batches_bit_equal=all(expected[step] == content for step, content in found) and dict(found).keys() == expected.keys(),
        updates_begun=len(found),
        updates_begun_twice=len(found) - len(dict(found)),
        killed_against_undisturbed=difference(runs[2], runs[0]),
    )
    launched(command, runs[1])
    spread = difference(runs[1], runs[0])
    tolerance = max(TOLERANCE, 3 * spread["loss"])
    reached = report.figures["killed_against_undisturbed"]["loss"]
    report(undisturbed_against_undisturbed=spread, tolerance=tolerance, losses_within_tolerance=reached <= tolerance)
