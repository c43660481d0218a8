"""A resumable graph of content-addressed stages: a stage is done when the mark in its folder holds its key.

A key is a hash of the stage's settings and of the keys of its inputs. A folder is named after stage and key, so a changed value makes new
folders for the stages that depend on it only. The mark also identifies the results: a folder of another chain is refused.
"""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openwavlm.checkpoints.about import ABOUT
from openwavlm.runtime.atomic import sha256_of, write_json
from openwavlm.runtime.sealed import read_sealed, sealed
from openwavlm.training.run_files import read_run

log = logging.getLogger(__name__)
MARK = "stage.json"
_STAGE_FOLDER = re.compile(r".+-[0-9a-f]{12}")
# Each holds the checksums of the other files of its folder.
_SEALS = (ABOUT, "labels/meta.json", "codebook/meta.json", "index/shards.json")


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        key: Hash of its settings and inputs.
        folder: Results.
        result: Figures that its function returned, as JSON values.
        seconds: Time that its making took.
        made: Whether this call made it.
        done: False only in a dry run, for results that do not exist.
    """

    key: str
    folder: Path
    result: dict[str, Any]
    seconds: float
    made: bool
    done: bool = True


class Chain:
    """Runs stages below one folder; a dry run makes none, and returns those that do not exist with `done` False."""

    def __init__(self, folder: Path, *, dry_run: bool = False) -> None:
        self.folder, self.dry_run = folder, dry_run
        self.stages: list[Stage] = []

    def run(
        self,
        name: str,
        settings: dict[str, Any],
        inputs: list[Stage],
        make: Callable[[Path], dict[str, Any] | None],
        *,
        content: str | None = None,
    ) -> Stage:
        """Makes a stage from settings and inputs, which decide its result, or finds that it is done.

        Args:
            name: Path of the stage below the chain's folder, as in `1/codebook`.
            make: Writes results into a folder and returns figures for later stages; resumes in the folder of a killed call.
            content: Fingerprint of an input that can grow. With another content, `make` is called again with the same folder, and the
                stages that build on this one are made again.

        Raises:
            ValueError: If the mark is damaged or the folder holds results of another stage.
        """
        asked = json.dumps([name, settings, [stage.key for stage in inputs]], sort_keys=True, default=str)
        key = hashlib.sha256(asked.encode()).hexdigest()[:12]
        folder = self.folder / f"{name}-{key}"
        if content is not None:
            key = hashlib.sha256(f"{key} {content}".encode()).hexdigest()[:12]
        mark = folder / MARK
        done = read_sealed(mark, remedy="delete it, and the stage is made again") if mark.is_file() else {}
        if done.get("key") == key:
            if not (isinstance(done.get("result"), dict) and isinstance(done.get("seconds"), int | float)):
                raise ValueError(
                    f"{mark} is damaged (it must hold a result and its seconds): delete it, and the stage is made again"
                )
            _check_identity(mark, done.get("identity", {}))
            stage = Stage(key, folder, done["result"], done["seconds"], made=False)
        elif self.dry_run:
            stage = Stage(key, folder, {}, 0.0, made=False, done=False)
        else:
            log.info("== %s", name)
            began = time.monotonic()
            folder.mkdir(parents=True, exist_ok=True)
            result = make(folder) or {}
            seconds = round(time.monotonic() - began, 1)
            about = {"key": key, "settings": json.loads(asked), "result": result, "seconds": seconds}
            write_json(mark, sealed(about | {"identity": _identity(folder)}))
            stage = Stage(key, folder, result, seconds, made=True)
        self.stages.append(stage)
        return stage


def _identity(folder: Path) -> dict[str, str]:
    """Checksums of the files that identify a stage's results; of a run its `run`, since a run may be resumed."""
    found = {name: sha256_of(folder / name) for name in _SEALS if (folder / name).is_file()}
    run = folder / "run" / "run.json"
    return found | ({"run/run.json": read_run(run).get("run", "")} if run.is_file() else {})


def _check_identity(mark: Path, known: dict[str, str]) -> None:
    found = _identity(mark.parent)
    other = [name for name, value in known.items() if found.get(name) != value]
    if other:
        raise ValueError(
            f"{mark.parent / other[0]} is {'not the one that this stage wrote' if other[0] in found else 'missing'}: restore "
            f"{mark.parent} from a copy, or delete it to make the stage again"
        )


def fingerprint(path: Path) -> str:
    """Hash of a user's file by content, or of a folder by the names, sizes and times of all files below it."""
    if path.is_file():
        return sha256_of(path)[:16]
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            status = file.stat()
            digest.update(
                f"{file.relative_to(path)}\t{status.st_size}\t{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
            )
    return digest.hexdigest()[:16]


def graph(chain: Chain) -> list[dict[str, Any]]:
    """State of each stage of a chain after a (dry) run, in the order of their making, then of the stages of earlier settings.

    Returns:
        For each `stage` its `state` (`done`; `begun`: an earlier call ended inside it, the next resumes it; `to do`; `stale`: its
        folder exists, but the graph no longer contains it), `folder`, `seconds` of its making (None if unknown) and `bytes` on disk.
    """
    rows = []
    for stage in chain.stages:
        state = "done" if stage.done else "begun" if stage.folder.exists() else "to do"
        rows.append(_row(chain, stage.folder.relative_to(chain.folder).as_posix(), state, stage.seconds if stage.done else None))
    present = {row["folder"] for row in rows}
    there = [path.relative_to(chain.folder).as_posix() for pattern in ("*", "*/*") for path in chain.folder.glob(pattern)]
    folders = [name for name in there if _STAGE_FOLDER.fullmatch(name) and not _STAGE_FOLDER.fullmatch(name.rpartition("/")[0])]
    return rows + [_row(chain, name, "stale", None) for name in sorted(folders) if name not in present]


def _row(chain: Chain, folder: str, state: str, seconds: float | None) -> dict[str, Any]:
    size = sum(path.stat().st_size for path in (chain.folder / folder).rglob("*") if path.is_file())
    return {"stage": folder[:-13], "state": state, "folder": folder, "seconds": seconds, "bytes": size}


def graph_lines(rows: list[dict[str, Any]]) -> list[str]:
    """The graph as the lines of a table."""
    width = max(len(row["stage"]) for row in rows)
    lines = []
    for row in rows:
        took = "" if row["seconds"] is None else f"{row['seconds']:8.1f} s"
        size = f"{row['bytes'] / 1e6:9.1f} MB" if row["bytes"] else ""
        lines.append(f"{row['state']:6} {row['stage']:{width}} {took:10} {size:12} {row['folder']}".rstrip())
    counts = {state: sum(row["state"] == state for row in rows) for state in ("done", "begun", "to do", "stale")}
    lines.append(", ".join(f"{count} {state}" for state, count in counts.items() if count) + "; nothing was made")
    if counts["stale"]:
        lines.append("stale stages belong to earlier settings: delete their folders if you do not go back to them")
    return lines
