"""The run directory: rules for a second launch, and `run.json`."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from openwavlm.runtime.atomic import write_atomically
from openwavlm.runtime.sealed import checksum_of, sealed
from openwavlm.training.checkpoint import checkpoints_in
from openwavlm.training.records import read_record
from openwavlm.training.run_files import FORMAT_VERSION, config_checksum, flatten, parse_config, read_config, read_run

log = logging.getLogger(__name__)
# May differ between launches: they do not change the trajectory.
_FREE_GROUPS = ("trainer", "callbacks", "logger", "loader", "health", "probes")
_FREE_KEYS = ("stop_after", "allow_change", "debug", "model.recompute", "encoder.recompute")


def _is_free(key: str) -> bool:
    return key.split(".")[0] in _FREE_GROUPS or key in _FREE_KEYS


def trajectory(config: dict[str, Any]) -> dict[str, Any]:
    """The flattened keys of a config that decide the weights, without those of device, records and checks."""
    # Null is left out, so that a key that was added after a run began does not change the run's identity.
    # A name is text, but may be a number in the config of an earlier version.
    named = {**config, "name": str(config["name"])} if config.get("name") is not None else config
    return {key: value for key, value in flatten(named).items() if value is not None and not _is_free(key)}


def changed_keys(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys of the trajectory that differ between two launches: key → (before, after)."""
    old, new = trajectory(before), trajectory(after)
    keys = sorted(set(old) | set(new))
    return {key: (old.get(key), new.get(key)) for key in keys if old.get(key) != new.get(key)}


def refuse_changes(changes: dict[str, tuple[Any, Any]], allow_change: list[str], run: str) -> None:
    """Raises a `ValueError` that lists the differences that are not in `allow_change`, each with both values."""
    allowed = tuple(f"{key}." for key in allow_change)
    refused = {key: values for key, values in changes.items() if not f"{key}.".startswith(allowed)}
    if refused:
        lines = "".join(f"\n  {key}: {old!r} -> {new!r}" for key, (old, new) in refused.items())
        raise ValueError(
            f"this launch differs from {run}:{lines}\nUse another name for a new run, or allow_change="
            f"[{','.join(refused)}] to continue with the change (it is recorded in run.json)"
        )


def accept_config(directory: Path, config: dict[str, Any], allow_change: list[str]) -> dict[str, tuple[Any, Any]]:
    """Compares the composed config with the run's, and returns the allowed changes, empty on the first launch.

    Writes the new config beside, to replace the run's when a segment begins: a launch that is refused later leaves the run's as it is.

    Raises:
        ValueError: If the run's config or `run.json` is missing or cannot be read, or both are and there are checkpoints; as
            `refuse_changes`.
    """
    path = directory / "config.yaml"
    _finish_rename(directory)
    changes: dict[str, tuple[Any, Any]] = {}
    if path.exists():
        changes = changed_keys(read_config(path), config)
        refuse_changes(changes, allow_change, f"the run in {directory}")
    write_atomically(_staged(directory), yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
    return changes


def _staged(directory: Path) -> Path:
    return directory / "config.yaml.next"


def _finish_rename(directory: Path) -> None:
    """Checks that config and record are both there; completes a launch that was killed between writing them."""
    path, record, staged = directory / "config.yaml", directory / "run.json", _staged(directory)
    if path.exists() and not record.exists():
        raise ValueError(
            f"{record} is missing, but {path.name} is there, so the run's data and launches are not known: restore it from a copy, or "
            "start a new run under another name"
        )
    if not path.exists() and not record.exists() and (found := checkpoints_in(directory / "checkpoints")):
        raise ValueError(
            f"{path} and {record.name} are missing, but there are {len(found)} checkpoints, the last one {found[-1].name}, whose config "
            "and data are not known: restore both files from a copy, or start a new run under another name"
        )
    if path.exists() or not record.exists():
        return
    content = read_run(record)
    if staged.is_file() and config_checksum(parse_config(staged)) in content.get("configs", []):
        staged.replace(path)
    elif content["segments"]:
        raise ValueError(
            f"{path} is missing, but {record.name} lists {len(content['segments'])} launches of this run: restore it from a copy, or "
            "start a new run under another name"
        )


def training_data(data: dict[str, Any], fingerprints: dict[str, str]) -> dict[str, Any]:
    """Identity of the speakers that a launch trains on, from its data node and fingerprints.

    Returns:
        `validation_share` and `split_seed`; fingerprints of the training shard sets, `indexes`, and of the held-out ones,
        `validation_indexes`; the hashes of their names, `metadata`, by fingerprint.
    """
    shards = {name.removeprefix("shards."): value for name, value in fingerprints.items() if name.startswith("shards.")}
    apart = set(data.get("validation") or {})
    names = {value: fingerprints[f"metadata.{name}"] for name, value in shards.items() if f"metadata.{name}" in fingerprints}
    return {
        **({"metadata": names} if names else {}),
        "validation_share": data["validation_share"],
        "split_seed": data["split_seed"],
        "indexes": sorted(value for name, value in shards.items() if name not in apart),
        "validation_indexes": sorted(value for name, value in shards.items() if name in apart),
    }


def of_other_data(earlier: list[dict[str, Any]], now: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of `RunRecord.trained_on` that differ from `now` in data or split, `sources` aside."""
    return [
        entry for entry in earlier if any(entry.get(name, value) != value for name, value in now.items() if name != "sources")
    ]


def names_in(fingerprints: dict[str, str]) -> dict[str, str]:
    """A run's fingerprints of its shards' names."""
    return {name: value for name, value in fingerprints.items() if name.startswith("metadata.")}


def lacks_names(known: dict[str, str], now: dict[str, str]) -> bool:
    """True for fingerprints of format 1, which lack those of the shards' names."""
    return bool(names_in(now)) and not names_in(known) and any(name.startswith("shards.") for name in known)


def same_data(known: dict[str, str], now: dict[str, str]) -> bool:
    """True if fingerprints are equal, apart from names that format 1 lacks."""
    return (known | names_in(now) if lacks_names(known, now) else known) == now


class RunRecord:
    """`run.json` of a run directory: identity of the run, versions, fingerprints, and one segment per launch."""

    def __init__(self, directory: Path) -> None:
        self._path, self._staged_config = directory / "run.json", _staged(directory)
        self.content: dict[str, Any] = {"format_version": FORMAT_VERSION, "segments": []}
        if self._path.exists():
            self.content = read_run(self._path)

    def check_fingerprints(
        self, fingerprints: dict[str, str], allow_change: list[str], places: Mapping[str, str] | None = None
    ) -> None:
        """Refuses other data than those that the run began with, in the folders `places`, and records their fingerprints.

        Raises:
            ValueError: If shards, their names (`metadata`), labels or noise differ and `data` is not allowed to change; if the run is
                of format 1, without the names.
        """
        known = fingerprints if "data" in allow_change else self.content.get("fingerprints", fingerprints)
        if lacks_names(known, fingerprints):
            raise ValueError(
                f"{self._path} lacks the checksums of speakers and other names of the run's shards (a run of format 1): add them by "
                f"`openwavlm upgrade {self._path.parent}`, and the same command resumes the run"
            )
        if known != fingerprints:
            names = sorted(k for k in set(known) | set(fingerprints) if known.get(k) != fingerprints.get(k))
            named = [f"{name} in {places[name]}" if places and name in places else name for name in names]
            raise ValueError(
                f"the data of this run has changed since it began ({', '.join(named)}): restore it, start a new run under another "
                "name, or allow_change=[data]"
            )
        self.content["fingerprints"] = fingerprints

    @property
    def trained_on(self) -> list[dict[str, Any]]:
        """Training data of its launches, oldest first: `training_data` and `sources`."""
        return list(self.content.get("trained_on", []))

    def add_training_data(self, data: dict[str, Any], fingerprints: dict[str, str], sources: set[str]) -> None:
        """Adds the training data of a launch; call it before `check_fingerprints`, which replaces those of the launch before."""
        now = training_data(data, fingerprints)
        self.content["trained_on"] = [*of_other_data(self.trained_on, now), now | {"sources": sorted(sources)}]
        self.content["sources"] = sorted({*self.content.get("sources", []), *sources})

    def inherit(self, parent: "RunRecord") -> None:
        """Copies the training data and `init_from` of the run that this one branches from."""
        own = self.trained_on
        self.content["trained_on"] = [
            *(entry for entry in parent.trained_on if all(of_other_data([entry], now) for now in own)),
            *own,
        ]
        self.content["sources"] = sorted({*self.content.get("sources", []), *parent.content.get("sources", [])})
        if "init_from" in parent.content:
            self.content["init_from"] = parent.content["init_from"]

    def begin_segment(self, segment: dict[str, Any]) -> None:
        """Adds this launch, and makes its config the run's; the first one gives the run its identity."""
        self.content["segments"].append(segment)
        config = self._staged_config.with_suffix("")
        # Both, since a kill between the two writes leaves the config of the launch before.
        configs = [parse_config(file) for file in (config, self._staged_config) if file.exists()]
        self.content["configs"] = [config_checksum(one) for one in configs]
        # A hash of the beginning, not random, so that a run that was killed and resumed has the bytes of one that was not.
        beginning = {"config": trajectory(configs[-1]) if configs else {}, "data": self.content.get("fingerprints", {})}
        self.content.setdefault("run", checksum_of(beginning))
        self.save()
        if self._staged_config.exists():
            self._staged_config.replace(config)

    def refuse_lost_checkpoints(self) -> None:
        """Raises a `ValueError` for a run that has lost all of its checkpoints, instead of training it from the start."""
        newest = max([self.content.get("first_checkpoint", 0), *(segment["from_step"] for segment in self.content["segments"])])
        if newest > self._first_step:
            raise ValueError(
                f"{self._path.parent / 'checkpoints'} has no checkpoint, but by {self._path.name} this run wrote one after update "
                f"{newest}: restore the checkpoints from a copy, or delete the run's folder to train from the start"
            )

    def warn_of_lost_updates(self) -> None:
        """Warns of the updates of a launch that ended before its first checkpoint, which are trained again."""
        metrics, first = self._path.with_name("metrics.csv"), self._first_step
        trained = [step for step in (read_record(metrics).steps if metrics.is_file() else []) if step > first]
        if trained:
            log.warning(
                "%s has updates %d to %d of a launch that ended before its first checkpoint: they are lost, and the run begins again "
                "after update %d",
                metrics,
                trained[0],
                trained[-1],
                first,
            )

    @property
    def _first_step(self) -> int:
        """Updates before the run began: 0, or those of the checkpoint that it branched from."""
        segments = self.content["segments"]
        return int(segments[0]["from_step"]) if segments else 0

    def note_checkpoint(self, step: int) -> None:
        """Records the run's first checkpoint, so that a loss of all checkpoints is detected."""
        if "first_checkpoint" not in self.content:
            self.content["first_checkpoint"] = step
            self.save()

    def save(self) -> None:
        """Writes the file, in this version's format."""
        self.content["format_version"] = FORMAT_VERSION
        write_atomically(self._path, (json.dumps(sealed(self.content), indent=1) + "\n").encode())
