"""What the done-files of a shard set say: which tasks are finished and which utterances could not be used."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openwavlm.runtime.atomic import atomic_file
from openwavlm.runtime.files import Fields
from openwavlm.runtime.sealed import read_newest
from openwavlm.shards.index import FORMAT_VERSION
from openwavlm.shards.tasks import TaskLine
from openwavlm.shards.writer import task_file

_COUNTS = ("planned", "utterances", "samples", "joined", "joined_clips", "short", "clipped_samples", "clipped_files")
log = logging.getLogger(__name__)


def task_done(output: Path, number: int) -> dict[str, Any] | None:
    """The done-file of a task; None while it is not finished, and of one that is damaged, whose task is done again.

    Raises:
        OSError: If the machine cannot read it; names the file.
    """
    file = task_file(output, number)
    if not file.is_file():
        return None
    try:
        upgrade, remedy = f"openwavlm upgrade {output}", "the task is done again"
        found = read_newest(file, newest=FORMAT_VERSION, what=str(file), upgrade=upgrade, remedy=remedy)
        check_task_done(found)
        return found.values
    except ValueError as error:
        log.warning("%s", error)
        return None


def check_task_done(found: Fields) -> None:
    """Checks types and ranges of the fields of a task's done-file.

    Raises:
        ValueError: Naming file and field.
    """
    shards = Fields(found.mapping("shards"), f"{found.where}, shards", found.remedy)
    for name in shards.values:
        shards.integer(name)
    found.texts("again")
    for entry in found.objects("skipped"):
        for name in ("name", "path", "reason", "detail"):
            entry.text(name)
    for name in _COUNTS:
        if name in found.values:
            found.integer(name)


def is_done(output: Path, number: int) -> bool:
    """Whether a task's done-file and shards exist; a missing or cut shard is made again."""
    done = task_done(output, number)
    if done is None:
        return False
    for name, nbytes in done["shards"].items():
        tar = output / name
        if not tar.with_suffix(".json").is_file() or not tar.is_file() or tar.stat().st_size != nbytes:
            return False
    return True


def skipped(output: Path, lines: Sequence[TaskLine]) -> dict[str, dict[str, Any]]:
    """What could not be used, by name; a later task that took up a repaired file has the last word."""
    unusable: dict[str, dict[str, Any]] = {}
    for line in lines:
        done = task_done(output, line.number)
        if done is not None:
            for name in done["again"]:
                unusable.pop(name, None)
            unusable |= {entry["name"]: entry for entry in done["skipped"]}
    return unusable


def write_skipped(output: Path, unusable: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `skipped.tsv`: path, name, reason and detail of every utterance that could not be used."""
    with atomic_file(output / "skipped.tsv") as file:
        file.write(b"path\tname\treason\tdetail\n")
        for entry in sorted(unusable.values(), key=lambda entry: entry["name"]):
            cells = (" ".join(entry[name].split()) for name in ("path", "name", "reason", "detail"))
            file.write(("\t".join(cells) + "\n").encode("utf-8", "backslashreplace"))


def refuse_many_skipped(output: Path, unusable: Mapping[str, Mapping[str, Any]], total: int, max_skip_rate: float) -> None:
    """Lets a few bad recordings pass and refuses many.

    Raises:
        ValueError: If more than `max_skip_rate` of `total` utterances are unusable.
    """
    if len(unusable) <= max_skip_rate * total:
        return
    entries = sorted(unusable.values(), key=lambda entry: entry["name"])[:3]
    first = "; ".join(f"{entry['path']}: {entry['reason']}, {entry['detail']}" for entry in entries)
    raise ValueError(
        f"{len(unusable)} of {total} utterances cannot be used ({len(unusable) / total:.2%}), more than "
        f"max_skip_rate={max_skip_rate:g} allows (first: {first}): repair or remove the files that {output / 'skipped.tsv'} lists "
        "and run again, or raise max_skip_rate"
    )
