"""Readers of a run's checkpoint and of the description beside it."""

import pickle
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openwavlm.runtime.resources import check_of_the_file, naming, read_again
from openwavlm.runtime.sealed import read_sealed
from openwavlm.training.run_files import Count, has_type

FORMAT_VERSION = 1
CURE = "restore it from a copy, or resume from another checkpoint"
_DESCRIBED = {"format_version?": Count, "bytes": Count, "sha256": str, "step?": Count | None, "validation?": float | None}
_STATE = {"step": Count, "fingerprints": dict[str, str], "plan": dict}
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Description:
    """Content of `step-….ckpt.json`.

    Attributes:
        nbytes: Size of the file.
        sha256: Its checksum.
        step: Updates so far; None for a checkpoint that is not of a run.
        validation: Cross-entropy on held-out speakers at that step; None if it was not measured.
        tables: Table of the run (`metrics.csv`, …) → `bytes` and `checksum` of it up to this step.
        launch: Number of the launch that wrote it, from 1; 0 if unknown.
        run: Identity of the run that wrote it, as in `run.json`; empty if unknown.
    """

    nbytes: int
    sha256: str
    step: int | None
    validation: float | None
    tables: dict[str, dict[str, Any]]
    launch: int
    run: str


class ForeignCheckpointError(ValueError):
    """A checkpoint of a newer version or of another run. It is never passed over, since pruning would delete it."""


def description_file(path: Path) -> Path:
    """Path of a checkpoint's description."""
    return path.with_name(path.name + ".json")


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint; None for another name."""
    match = re.fullmatch(r"step-(\d+)\.ckpt", path.name)
    return int(match[1]) if match else None


def read_description(path: Path) -> Description:
    """Reads the description of a checkpoint, `path`.

    Raises:
        ForeignCheckpointError: If a newer version wrote it.
        ValueError: If the description is missing, damaged or of another step than that in the name.
    """
    file = description_file(path)
    content = read_sealed(file, remedy=CURE, newest=FORMAT_VERSION)
    version = content.get("format_version", 0)
    if has_type(version, Count) and version > FORMAT_VERSION:
        raise ForeignCheckpointError(
            f"{path} has checkpoint format {version}, this version reads up to {FORMAT_VERSION}: install a newer openwavlm, "
            f"or restore {file.name} if it is damaged"
        )
    step, validation, records = content.get("step"), content.get("validation"), content.get("records") or {}
    if not (has_type(content, _DESCRIBED) and _HEX.fullmatch(content["sha256"]) and _are_records(records)):
        raise ValueError(f"{file} is damaged (bytes, sha256 or step of the checkpoint are missing or wrong): {CURE}")
    named = step_of(path)
    if named is not None and step is not None and named != step:
        raise ValueError(f"{path} is named after update {named}, but {file.name} describes one after update {step}: {CURE}")
    figure = None if validation is None else float(validation)
    tables, launch = records.get("tables", {}), records.get("launch", 0)
    return Description(content["bytes"], content["sha256"], step, figure, tables, launch, records.get("run", ""))


def _are_records(value: Any) -> bool:
    """Whether a value has the form of `tables.RunTables.record`."""
    known = has_type(value, {"tables?": dict[str, dict[str, Any]], "launch?": Count, "run?": str})
    exact = {"bytes": Count, "checksum": str}
    return known and all(has_type(of, exact) and len(of) == len(exact) for of in value.get("tables", {}).values())


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Reads a run's checkpoint: tensors, mapped from the file, and plain values; no code in it is ever run.

    Checksums are compared here for all but tensors; `checkpoint.verified` compares those of tensors.

    Returns:
        `state_dict` (tensors by name), `openwavlm` (`step`, `fingerprints`, `plan`, …) and the entries of Lightning.

    Raises:
        ValueError: If it is damaged, not of a run, or of another step than that in its name.
    """
    content = load(path)
    ours: Any = content.get("openwavlm")
    state: Any = content.get("state_dict")
    fits = has_type(ours, _STATE) and _are_records(ours.get("records") or {}) and has_type(state, dict[str, Tensor])
    if not (fits and all(isinstance(name, str) for name in (*ours["fingerprints"], *state))):
        raise ValueError(
            f"{path} must hold a run's state_dict and, under openwavlm, its step, fingerprints and plan, but lacks some: {CURE}"
        )
    named = step_of(path)
    if named is not None and named != content["openwavlm"]["step"]:
        raise ValueError(
            f"{path} is named after update {named}, but holds the state after update {content['openwavlm']['step']}: {CURE}"
        )
    return content


def load(path: Path, *, map_location: Any = None, mapped: bool = True) -> dict[str, Any]:
    """Reads any checkpoint of Lightning as `read_checkpoint` does, without checks of its entries.

    Args:
        path: The checkpoint.
        map_location: As of `torch.load`; by default the CPU.
        mapped: Whether tensors are mapped from the file, or copied into memory.

    Raises:
        ValueError: If it is damaged or would run code.
        OSError: If it cannot be opened.
    """

    def read() -> Any:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if "/data/" not in record.filename:
                    archive.read(record)  # compares the checksum, as torch does not
        return torch.load(path, map_location=map_location or "cpu", weights_only=True, mmap=mapped)

    try:
        with naming(path):
            content = read_again(read, path)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split(". ")[0].split())
        raise ValueError(f"{path} must hold tensors and plain values alone ({reason}): {CURE}") from error
    except Exception as error:  # zipfile, torch and pickle raise almost anything on a damaged archive
        check_of_the_file(error, path)
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is damaged ({reason}): {CURE}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a checkpoint's entries by name, but holds {type(content).__name__}: {CURE}")
    return content
