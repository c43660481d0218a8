"""Settings of a preparation, to which a shard set is bound by its first run."""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openwavlm.runtime.sealed import write_sealed
from openwavlm.shards.corpora.columns import FIELDS
from openwavlm.shards.index import FORMAT_VERSION, read_record

_CHOICES = {"layout": ("folder", "manifest", "librispeech"), "channels": ("mean", "first", "split")}

logger = logging.getLogger(__name__)


def source_name(source: str | None, input: Path) -> str:
    """Name of a corpus: `source` (a ValueError if it has other characters than letters, digits, - and _), else made of the input's name."""
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", input.resolve().with_suffix("").name) if source is None else source
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ValueError(f"a source name consists of letters, digits, - and _, but is {name!r}: give source=NAME")
    return name


def check_settings(settings: Mapping[str, Any], max_skip_rate: float, num_tasks: int, task_index: int | None) -> None:
    """Raises a ValueError at the first setting that is out of range."""
    for name, choices in _CHOICES.items():
        if settings[name] not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {settings[name]!r}")
    for field in settings["columns"].keys() - {*FIELDS, "ignore"}:
        raise ValueError(f"columns has the fields {', '.join(FIELDS)} and ignore, but not {field!r}")
    for name in ("max_hours", "task_hours", "utterances_per_shard"):
        if not settings[name] > 0:
            raise ValueError(f"{name} must be above 0, but is {settings[name]}")
    for name in ("min_seconds", "speaker_folder"):
        if settings[name] < 0:
            raise ValueError(f"{name} must not be negative, but is {settings[name]}")
    if not 0 <= max_skip_rate <= 1:
        raise ValueError(f"max_skip_rate must lie in [0, 1], but is {max_skip_rate}")
    if task_index is not None and not 0 <= task_index < num_tasks:
        raise ValueError(f"task_index must lie in [0, num_tasks), but is {task_index} with num_tasks={num_tasks}")


def bind_settings(output: Path, settings: Mapping[str, Any], decoders: Mapping[str, str]) -> dict[str, Any]:
    """Writes the settings of a new shard set, or compares them with those of an existing one; logs other versions of the decoders.

    Returns:
        The settings, with `columns_by_name` False for a set that was begun before manifests' columns were found by name.

    Raises:
        ValueError: If the set was made with other settings or by another version, or its settings are lost.
    """
    path = output / "settings.json"
    settings = {**settings, "columns_by_name": True}
    if not (output / "tasks.jsonl").exists():
        if any((output / name).exists() for name in ("shards", "done", "index")):
            raise ValueError(f"{output} holds shards without their task list (tasks.jsonl): give another output")
        write_sealed(path, {"format_version": FORMAT_VERSION, **settings, "decoders": dict(decoders)})
        return settings
    bound = read_record(path, output, what=str(output), remedy="restore it from a copy, or give another output").values
    del bound["format_version"]
    earlier = bound.pop("decoders", None)
    # Sets of the first versions lack both settings.
    bound = {"channels": "mean", "columns_by_name": False} | bound
    settings["columns_by_name"] = bound["columns_by_name"]
    changed = sorted(name for name in settings.keys() | bound.keys() if settings.get(name) != bound.get(name))
    if changed:
        was = ", ".join(f"{name}={bound.get(name)}" for name in changed)
        now = ", ".join(f"{name}={settings.get(name)}" for name in changed)
        raise ValueError(f"{output} was made with {was}, but this run has {now}: repeat the settings, or give another output")
    if earlier != dict(decoders):
        begun = _versions(earlier) if isinstance(earlier, dict) else "unknown decoders"
        logger.warning(
            f"{output} was begun with {begun}, but this run decodes with {_versions(decoders)}: samples of lossy files may differ; "
            "stats.json counts the tasks of each"
        )
    return settings


def _versions(decoders: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in sorted(decoders.items()))
