"""A resumable graph of content-addressed stages: a stage is done when the mark in its folder holds its key.

A stage's key is a hash of its settings and of the keys of the stages that it builds on. Its folder is named after the stage and the key,
so that a changed value makes new folders for the stages that depend on it and no others. The mark also holds the identity of the results,
so that a folder exchanged for another chain's is refused.
"""

import hashlib
import json
import logging
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
# Each holds the checksums of the other files of its folder.
_SEALS = (ABOUT, "labels/meta.json", "codebook/meta.json", "index/shards.json")


@dataclass(frozen=True)
class Stage:
    """A finished stage.

    Attributes:
        key: Hash of its settings and inputs.
        folder: Folder of its results.
        result: Figures that its function returned, as JSON values.
        seconds: Duration when it was made.
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
    """Runs stages below one folder.

    Args:
        folder: Parent of the stages' folders.
        dry_run: Make nothing: a stage that does not exist is returned with an empty result and `done` False.
    """

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
        """Makes a stage, or finds that it is done.

        Args:
            name: Path of the stage below the chain's folder, as in `1/codebook`.
            settings: Plain values that decide its result.
            inputs: The stages that it reads.
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
        if done.get("key") == key and not (isinstance(done.get("result"), dict) and isinstance(done.get("seconds"), int | float)):
            raise ValueError(f"{mark} is damaged (it must hold a result and its seconds): delete it, and the stage is made again")
        if done.get("key") == key:
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
    """Checksums of the files that identify a stage's results; of a run its `run`, since a run may go on."""
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
