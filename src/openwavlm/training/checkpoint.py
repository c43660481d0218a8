"""Checkpoints that survive a kill: written beside, synced, described, renamed; the newest one that verifies is taken.

`step-….ckpt` is Lightning's full checkpoint, `step-….ckpt.json` its description, which is written first.
"""

import errno
import json
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.pytorch.plugins.io import CheckpointIO

from openwavlm.runtime.atomic import digest_of, sync_folder, write_atomically
from openwavlm.runtime.resources import naming
from openwavlm.runtime.sealed import sealed
from openwavlm.training.checkpoint_reader import (
    CURE,
    FORMAT_VERSION,
    Description,
    ForeignCheckpointError,
    description_file,
    load,
    read_description,
    step_of,
)
from openwavlm.training.faults import reach, watched
from openwavlm.training.run_files import read_run

_FULL_BYTES = 2**20
log = logging.getLogger(__name__)


def _of_the_file(error: BaseException | None) -> OSError | None:
    """Error of the file behind an error of torch's writer, which replaces it when it closes."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def _disk_is_full(folder: Path, error: Exception) -> bool:
    found = _of_the_file(error)
    return found.errno in (errno.ENOSPC, errno.EDQUOT) if found else shutil.disk_usage(folder).free < _FULL_BYTES


def _write(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(checkpoint, watched(file, "save.writing"))
    except RuntimeError as error:
        if (cause := _of_the_file(error)) is not None:
            raise cause from error
        raise


class AtomicCheckpointIO(CheckpointIO):
    """Lightning's plugin that writes and reads one checkpoint file."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes `path` so that a kill at any instant leaves either nothing or a whole file with its description.

        Raises:
            ValueError: If the disk is full; earlier checkpoints stay.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        try:
            reach("save.begin")
            with naming(path), temporary.open("wb") as file:
                _write(checkpoint, file)
                reach("save.written")
                file.flush()
                os.fsync(file.fileno())
            reach("save.synced")
            ours = checkpoint.get("openwavlm", {})
            description = {
                "format_version": FORMAT_VERSION,
                "step": ours.get("step"),
                "bytes": temporary.stat().st_size,
                "sha256": digest_of(temporary, "sha256"),
                "fingerprints": ours.get("fingerprints"),
                "validation": ours.get("validation"),
                "records": ours.get("records") or {},
            }
            write_atomically(description_file(path), (json.dumps(sealed(description), indent=1) + "\n").encode())
        except (OSError, RuntimeError) as error:
            full = _disk_is_full(path.parent, error)
            temporary.unlink(missing_ok=True)  # else the disk stays full
            if not full:
                raise
            raise ValueError(
                f"{path.parent} is full, so {path.name} was not written; earlier checkpoints are whole: free some space and give the same "
                "command again"
            ) from error
        temporary.replace(path)
        sync_folder(path.parent)
        reach("save.renamed")

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: FBT001
        """Reads tensors and plain values only: no code in a checkpoint is ever run."""
        return load(Path(path), map_location=map_location, mapped=False)

    def remove_checkpoint(self, path: Any) -> None:
        """Deletes a checkpoint and its description."""
        Path(path).unlink(missing_ok=True)
        description_file(Path(path)).unlink(missing_ok=True)


def checkpoint_path(directory: Path, step: int) -> Path:
    """Path of the checkpoint after `step` updates."""
    return directory / f"step-{step:08d}.ckpt"


def check(path: Path) -> Description:
    """Compares a checkpoint with its description.

    Raises:
        ForeignCheckpointError: If it was written by a newer version, or by another run than that of its folder.
        ValueError: If it is missing, damaged or of another step than that in its name.
    """
    description = read_description(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file: {CURE}")
    if path.stat().st_size != description.nbytes or digest_of(path, "sha256") != description.sha256:
        raise ValueError(f"{path} is damaged (its size or checksum is not that in {description_file(path).name}): {CURE}")
    record = path.absolute().parents[1] / "run.json"
    known = read_run(record).get("run") if description.run and record.is_file() else None
    if known and known != description.run:
        raise ForeignCheckpointError(
            f"{path} was written by another run than that of {record}: move it out of the folder, and restore the run's own checkpoint "
            "from a copy if it was replaced; to begin a new run at this one, give branch_from"
        )
    return description


def verified(path: Path) -> bool:
    """Whether a checkpoint is whole (`check`); the reason is logged if it is not.

    Raises:
        ForeignCheckpointError: If it was written by a newer version or by another run.
    """
    try:
        check(path)
    except ForeignCheckpointError:
        raise
    except ValueError as error:
        log.warning("checkpoint %s is passed over: %s", path.name, error)
        return False
    return True


def checkpoints_in(directory: Path) -> list[Path]:
    """Files of a folder that have the name of a checkpoint, by step."""
    return sorted((path for path in directory.glob("step-*.ckpt") if step_of(path) is not None), key=_by_step)


def _by_step(path: Path) -> tuple[int, str]:
    return step_of(path) or 0, path.name


def newest_checkpoint(directory: Path) -> Path | None:
    """The newest whole checkpoint, None if there is none; a damaged or lost one is passed over with a warning.

    Raises:
        ValueError: If the newest one was written by a newer version or by another run, or if there are some and all are damaged.
    """
    found = checkpoints_in(directory)[::-1]
    chosen = next((path for path in found if verified(path)), None)
    if found and chosen is None:
        raise ValueError(
            f"none of the {len(found)} checkpoints in {directory} verifies: restore one of them from a copy, or delete the run's "
            "folder to train from the start"
        )
    for described in sorted(directory.glob("step-*.ckpt.json"), reverse=True):
        lost = described.with_suffix("")
        if step_of(lost) is not None and not lost.exists() and (chosen is None or _by_step(lost) > _by_step(chosen)):
            log.warning(
                "%s is of a checkpoint that is not there (it was deleted, or a launch was killed while writing it); %s",
                described,
                f"the newest whole one is {chosen.name}" if chosen else "there is none before it",
            )
    return chosen


def named_checkpoint(directory: Path, which: str) -> Path | None:
    """The checkpoint of a word: `newest`, `best` (lowest validation cross-entropy) or a number of updates.

    Raises:
        ValueError: If there is no such checkpoint, or if the file is damaged.
    """
    if which == "newest":
        return newest_checkpoint(directory)
    if which == "best":
        ranked = _best_first(directory, warn=True)
        if not ranked:
            raise ValueError(f"no checkpoint in {directory} was validated, so there is no best one: use checkpoint=newest")
        named: Path | None = ranked[0]
    else:
        named = checkpoint_path(directory, int(which)) if which.isdecimal() else None
    if named is None or not named.exists():
        steps = ", ".join(str(step_of(found)) for found in checkpoints_in(directory))
        raise ValueError(f"checkpoint must be newest, best or one of {steps or 'none yet'}, but is {which}")
    check(named)
    return named


def _best_first(directory: Path, *, warn: bool = False) -> list[Path]:
    """The validated checkpoints, the lowest cross-entropy first; with `warn`, unreadable descriptions are logged."""
    figures = {}
    for path in checkpoints_in(directory):
        try:
            figure = read_description(path).validation
        except ValueError as error:
            if warn:
                log.warning("checkpoint %s is not compared: %s", path.name, error)
            continue
        if figure is not None and math.isfinite(figure):
            figures[path] = figure
    return sorted(figures, key=lambda path: (figures[path], path.name))


def prune(newest: Path, keep_last: int, *, keep_every: int = 0, keep_best: int = 0) -> None:
    """Deletes the checkpoints that no rule keeps, and unfinished files.

    Args:
        newest: The checkpoint that was just written; those of later steps were passed over as damaged.
        keep_last: Number of those of the last steps up to it that are kept; `keep_every` and `keep_best` as of `Schedules`.
    """
    directory = newest.parent
    for leftover in directory.glob("*.tmp"):
        leftover.unlink(missing_ok=True)
    found = checkpoints_in(directory)
    # By step, not by time: clocks differ between hosts, and copies have times of their own.
    kept = {newest, *[path for path in found if _by_step(path) <= _by_step(newest)][-keep_last:]}
    kept |= {path for path in found if keep_every and (step_of(path) or 0) % keep_every == 0}
    kept |= set(_best_first(directory)[:keep_best])
    for path in found:
        if path not in kept and not path.is_dir():
            AtomicCheckpointIO().remove_checkpoint(path)
