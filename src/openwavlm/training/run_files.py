"""Readers of `config.yaml`, `run.json` and `summary.json`; a damaged file is refused by name."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NewType, Union, get_args, get_origin

import yaml

from openwavlm.runtime.resources import retried
from openwavlm.runtime.sealed import read_sealed

FORMAT_VERSION = 2  # 2: with a checksum of itself and of config.yaml
_CURE = "restore it from a copy, or start a new run under another name"
_MAX_VALUES = 100_000
Count = NewType("Count", int)  # a whole number from 0 on


def has_type(value: Any, hint: Any) -> bool:
    """Whether a plain value has an annotated type; a whole number is a float too, a truth value is no number.

    Two more hints: `{"key": hint, "other?": hint}`, a mapping with these entries, the second of which may be absent; `[hint]`, a list.
    """
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return True
    if isinstance(hint, dict):
        places = [(key.rstrip("?"), key.endswith("?"), of) for key, of in hint.items()]
        return isinstance(value, dict) and all(has_type(value[k], of) if k in value else free for k, free, of in places)
    if isinstance(hint, list):
        return isinstance(value, list) and all(has_type(each, hint[0]) for each in value)
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin in (UnionType, Union):
        return any(has_type(value, choice) for choice in inner)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False
        kinds = inner[:1] * len(value) if origin is list or inner[-1] is ... else inner
        return len(value) == len(kinds) and all(has_type(v, kind) for v, kind in zip(value, kinds, strict=True))
    if origin is dict:
        return isinstance(value, dict) and all(has_type(v, inner[1]) for v in value.values())
    if isinstance(value, bool):
        return hint is bool
    if hint is Count:
        return isinstance(value, int) and value >= 0
    return isinstance(value, (int, float) if hint is float else hint)


def config_checksum(config: Any) -> str:
    """Checksum of a config for `run.json`, without its paths, which change where a run and its data are moved."""
    return hashlib.blake2b(json.dumps(_without_paths(config), sort_keys=True).encode(), digest_size=16).hexdigest()


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_paths(each) for each in value]
    return "/" if isinstance(value, str) and "/" in value else value


def read_config(path: Path) -> dict[str, Any]:
    """Reads a run's `config.yaml` under the keys of this version, and compares it with the checksums in `run.json`, if there are some.

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
            f"{path} is damaged or was edited (no launch in run.json wrote it): restore it from a copy; to resume with another config "
            "give allow_change=[…] to train.py"
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
    found = _without_classes(config)
    for old, new in _RENAMED.items():
        group, key = old.split(".")
        if isinstance(found.get(group), dict) and key in found[group]:
            value = found[group].pop(key)
            if new is not None:
                _put(found, new, value)
    return {key: value for key, value in found.items() if key != "head"}


def _put(config: dict[str, Any], key: str, value: Any) -> None:
    """Sets a value of a nested config by its flattened key."""
    *path, last = key.split(".")
    for name in path:
        config = config.setdefault(name, {})
    config[last] = value


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
        _put(found, key, value)
    return found


def parse_config(path: Path) -> dict[str, Any]:
    """Reads a config file by itself.

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


# As of `run_directory.training_data`.
_TRAINING = {
    "indexes": list[str],
    "validation_indexes": list[str],
    "validation_share": float,
    "split_seed": float,
    "metadata?": dict[str, str],
    "sources?": list[str],
}
_RUN = {
    "format_version": Count,
    "segments": [{"from_step": Count, "validation_share?": float}],
    "fingerprints?": dict[str, str],
    "trained_on?": [_TRAINING],
    "configs?": list[str],
    "sources?": list[str],
    "run?": str,
    "first_checkpoint?": Count,
}
_BEGINNING = {"path": str, "model": str, "dialect": str, "head?": list[str | None]}


def read_run(path: Path) -> dict[str, Any]:
    """Reads a `run.json`, of this format or of 1, which had no checksum.

    Raises:
        ValueError: If it is missing, damaged or of a newer format.
    """
    content = read_sealed(path, remedy=_CURE, newest=FORMAT_VERSION, sealed_since=2)
    if "heard" in content:  # the key of runs that began before 2026-11-29
        content["trained_on"] = content.pop("heard")
    version: Any = content.get("format_version")
    if has_type(version, Count) and version > FORMAT_VERSION:
        raise ValueError(f"{path} has format {version}, this version reads up to {FORMAT_VERSION}: install a newer openwavlm")
    began_as = content.get("init_from")
    if not has_type(content, _RUN) or not (began_as is None or has_type(began_as, _BEGINNING)):
        raise ValueError(f"{path} is damaged (it must hold the launches of a run and what they trained on): {_CURE}")
    return content


_SEGMENT = {
    "changes": dict[str, tuple[Any, Any]],
    "versions": {"openwavlm": str},
    "threads": int,
    "plan_version": Count,
    "commit": Any,
    "fingerprints": dict[str, str],
    "validation_share?": float,
    "plan": {"key": str},
}


def check_launches(content: Mapping[str, Any], path: Path) -> None:
    """Checks the entries of each launch of `read_run` from which its updates are built again; `path` is the file.

    Raises:
        ValueError: If a launch lacks something.
    """
    for number, segment in enumerate(content["segments"]):
        if not (has_type(segment, _SEGMENT) and 0 < segment["threads"] < 10_000):
            raise ValueError(f"{path} is damaged (entries of launch {number} are missing or wrong): restore it from a copy")


_SUMMARY = {"updates?": Count, "complete?": bool, "this_launch?": dict[str, float], "health?": dict[str, Any] | None}


def read_summary(path: Path) -> dict[str, Any]:
    """Reads a run's `summary.json`.

    Raises:
        ValueError: If it is missing or damaged.
    """
    cure = "delete it, and give the command that trained the run again, which writes it anew"
    content = read_sealed(path, remedy=cure)
    if not has_type(content, _SUMMARY):
        raise ValueError(f"{path} is damaged (it must hold a run's updates and its last launch): {cure}")
    return content
