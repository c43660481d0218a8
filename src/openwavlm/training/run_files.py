"""Readers of `config.yaml`, `run.json` and `summary.json`; a damaged file is refused by name."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from openwavlm.runtime.resources import retried
from openwavlm.runtime.sealed import read_sealed

FORMAT_VERSION = 2  # 2: with a checksum of itself and of config.yaml
_CURE = "restore it from a copy, or start a new run under another name"
_MAX_VALUES = 100_000


def config_checksum(config: Any) -> str:
    """Checksum of a config for `run.json`, without its paths, which change where a run and its data are moved.

    A wrong path is noticed when it is opened: by its absence, or by the fingerprints of the data.
    """
    return hashlib.blake2b(json.dumps(_without_paths(config), sort_keys=True).encode(), digest_size=16).hexdigest()


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return "/" if isinstance(value, str) and "/" in value else value


def read_config(path: Path) -> dict[str, Any]:
    """Reads a run's `config.yaml`, and compares it with the checksums in `run.json`, if there are some.

    Returns:
        The config under the keys of this version.

    Raises:
        ValueError: If it is missing or damaged, or if no launch of this run wrote it.
    """
    if not path.is_file():
        raise ValueError(
            f"{path.parent} is no run directory (it has no config.yaml): give the folder that train.py wrote, as in run=runs/NAME"
        )
    config = parse_config(path)
    record = path.with_name("run.json")
    known = read_run(record).get("configs") if record.exists() else None
    if known and config_checksum(config) not in known:
        raise ValueError(
            f"{path} is damaged or was edited (no launch in run.json wrote it): restore it from a copy; to go on with another "
            "config give allow_change=[…] to train.py"
        )
    return _in_current_form(config)


# Keys of earlier versions and their names today; None for one that no longer exists.
_RENAMED: dict[str, str | None] = {
    "optim.max_void_rate": "optim.max_skip_rate",
    "health.void_share": "health.skipped_share",
    **{f"health.{name}": None for name in ("coverage_tolerance", "mixing_tolerance", "level_tolerance_db")},
    **{f"head.{name}": f"model.head.{name}" for name in ("final_dim", "logit_temperature", "special_rows", "label_init")},
}


def current_key(key: str) -> str | None:
    """Name of a flattened config key of this or an earlier version; None for a key that no longer exists."""
    return None if key.rpartition(".")[2] == "_target_" else _RENAMED.get(key, key)


def _in_current_form(config: dict[str, Any]) -> dict[str, Any]:
    """A run's config under today's keys."""
    found = {key: _without_classes(value) for key, value in config.items()}
    for old, new in _RENAMED.items():
        group, key = old.split(".")
        if not isinstance(found.get(group), dict) or key not in found[group]:
            continue
        value = found[group].pop(key)
        if new is not None:
            *path, last = new.split(".")
            node = found
            for name in path:
                node = node.setdefault(name, {})
            node[last] = value
    return {key: value for key, value in found.items() if key != "head"}


def _without_classes(value: Any) -> Any:
    """A copy without the names of Python classes that earlier versions wrote into every group."""
    return {key: _without_classes(each) for key, each in value.items() if key != "_target_"} if isinstance(value, dict) else value


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as `a.b.c` → value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *path, last = key.split(".")
        node = found
        for name in path:
            node = node.setdefault(name, {})
        node[last] = value
    return found


def parse_config(path: Path) -> dict[str, Any]:
    """Reads a file of a config by itself.

    Raises:
        ValueError: If it is damaged.
    """
    raw = retried(path.read_bytes, path)
    try:
        config = yaml.safe_load(raw.decode())
    except Exception as error:  # yaml's constructors raise nearly anything for a wrong scalar
        raise ValueError(f"{path} is damaged (it is not YAML: {type(error).__name__}): {_CURE}") from error
    if not isinstance(config, dict) or not _is_plain(config):
        raise ValueError(f"{path} is damaged (it must hold keys with plain values): {_CURE}")
    return config


def _is_plain(config: Any) -> bool:
    """Whether a value is a tree of plain values; YAML's aliases can make it circular or endless."""
    pending, seen = [config], 0
    while pending:
        value = pending.pop()
        seen += 1
        if seen > _MAX_VALUES:
            return False
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                return False
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
        elif value is not None and not isinstance(value, bool | int | float | str):
            return False
    return True


def read_run(path: Path) -> dict[str, Any]:
    """Reads a `run.json`, of this format or of 1, which had no checksum.

    Raises:
        ValueError: If it is missing, damaged or of a newer format.
    """
    content = read_sealed(path, remedy=_CURE, newest=FORMAT_VERSION, sealed_since=2)
    version: Any = content.get("format_version")
    if is_count(version) and version > FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}, this version reads up to {FORMAT_VERSION}: install a newer openwavlm")
    segments, heard, configs = content.get("segments"), content.get("heard", []), content.get("configs", [])
    fits = (
        is_count(version)
        and isinstance(segments, list)
        and all(isinstance(segment, dict) and is_count(segment.get("from_step")) for segment in segments)
        and are_texts(content.get("fingerprints", {}))
        and isinstance(heard, list)
        and all(isinstance(entry, dict) and _fits_training(entry) for entry in heard)
        and isinstance(configs, list)
        and all(isinstance(checksum, str) for checksum in configs)
        and _is_list_of_texts(content.get("sources", []))
        and isinstance(content.get("run", ""), str)
        and is_count(content.get("first_checkpoint", 0))
        and _fits_beginning(content.get("init_from"))
    )
    if not fits:
        raise ValueError(f"{path} is damaged (it must hold the launches of a run and what they trained on): {_CURE}")
    return content


def check_launches(content: Mapping[str, Any], path: Path) -> None:
    """Checks the entries of each launch that are needed to build its updates again.

    Args:
        content: Of `read_run`.
        path: Its file, for the message.

    Raises:
        ValueError: If a launch lacks something.
    """
    for number, segment in enumerate(content["segments"]):
        changes, versions, plan = segment.get("changes"), segment.get("versions"), segment.get("plan")
        fits = (
            isinstance(changes, dict)
            and all(isinstance(pair, list) and len(pair) == 2 for pair in changes.values())
            and isinstance(versions, dict)
            and isinstance(versions.get("openwavlm"), str)
            and isinstance(segment.get("threads"), int)
            and 0 < segment["threads"] < 10_000
            and is_count(segment.get("plan_version"))
            and "commit" in segment
            and are_texts(segment.get("fingerprints"))
            and isinstance(plan, dict)
            and isinstance(plan.get("key"), str)
        )
        if not fits:
            raise ValueError(f"{path} is damaged (entries of launch {number} are missing or wrong): restore it from a copy")


def read_summary(path: Path) -> dict[str, Any]:
    """Reads a run's `summary.json`.

    Raises:
        ValueError: If it is missing or damaged.
    """
    cure = "delete it, and give the command that trained the run again, which writes it anew"
    content = read_sealed(path, remedy=cure)
    launch, health = content.get("this_launch", {}), content.get("health")
    fits = (
        is_count(content.get("updates", 0))
        and isinstance(content.get("complete", False), bool)
        and isinstance(launch, dict)
        and all(isinstance(value, int | float) and not isinstance(value, bool) for value in launch.values())
        and (health is None or isinstance(health, dict))
    )
    if not fits:
        raise ValueError(f"{path} is damaged (it must hold a run's updates and its last launch): {cure}")
    return content


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0 on."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def are_texts(value: Any) -> bool:
    """Whether a value is a mapping of texts to texts."""
    return isinstance(value, dict) and all(isinstance(each, str) for pair in value.items() for each in pair)


def _is_list_of_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def _fits_training(entry: dict[str, Any]) -> bool:
    """Whether a value has the form of `run_directory.training_data`."""
    return (
        all(_is_list_of_texts(entry.get(name)) for name in ("indexes", "validation_indexes"))
        and all(isinstance(entry.get(name), int | float) for name in ("validation_share", "split_seed"))
        and are_texts(entry.get("metadata", {}))
        and _is_list_of_texts(entry.get("sources", []))
    )


def _fits_beginning(value: Any) -> bool:
    return value is None or (
        isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("path", "model", "dialect"))
    )
