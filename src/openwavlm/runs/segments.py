"""Launches in `run.json`: the entry of a new one, and the one that trained an update, with its config, data and plan."""

import logging
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from openwavlm.batches.plan import PLAN_VERSION
from openwavlm.batches.schedule import Schedule
from openwavlm.batches.settings import Data
from openwavlm.runs.run_directory import RunRecord, names_in
from openwavlm.training.checkpoint import checkpoints_in
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.config import RunConfig
from openwavlm.training.run_files import check_launches, current_key, flatten, nested, read_config

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Segment:
    """One launch of a run.

    Attributes:
        newest: The run's newest config, for folders that were moved since.
        record: Its entry in `run.json`, as of `segment_entry`.
        number: Its place among the launches, from 0.
    """

    config: dict[str, Any]
    newest: dict[str, Any]
    record: dict[str, Any]
    number: int


def _commit() -> str | None:
    """The commit of this package's checkout; None for an installed package or without git."""
    checkout = Path(__file__).resolve().parents[3]
    if not (checkout / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return found.stdout.strip() or None


def _version(package: str) -> str:
    """Version of a package; a checkout on PYTHONPATH has none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def segment_entry(
    step: int,
    world_size: int,
    changes: dict[str, Any],
    fingerprints: dict[str, str],
    validation_share: float,
    plan: dict[str, Any],
) -> dict[str, Any]:
    """Entry of a launch that begins after update `step`; `validation_share` as of `splits.settled_share`."""
    return {
        "from_step": step,
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "host": platform.node(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in ("openwavlm", "torch", "lightning", "numpy", "soundfile")},
        "commit": _commit(),
        "plan_version": PLAN_VERSION,
        "plan": plan,
        "fingerprints": fingerprints,
        "validation_share": validation_share,
        "changes": {key: list(values) for key, values in changes.items()},
        "command": " ".join(sys.argv),
    }


def segment_of(directory: Path, step: int) -> Segment:
    """The launch of an update, counted from 1 as in `metrics.csv`; nothing is locked or written.

    Raises:
        ValueError: If the folder is no run directory, its records are damaged or of a newer version, or this version plans otherwise
            than the one that trained the update.
    """
    path = directory / "config.yaml"
    config = read_config(path)
    kept = RunRecord(directory).content
    check_launches(kept, directory / "run.json")
    segments = kept["segments"]
    try:
        configs = _configs(config, segments)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or of another version than run.json: restore both from a copy") from error
    numbers = [number for number, record in enumerate(segments) if record["from_step"] < step]
    if not numbers and config.get("branch_from") and segments:
        raise ValueError(
            f"{directory} begins after update {segments[0]['from_step']}, as a branch of {config['branch_from']}: update {step} "
            "was trained by that run; replay it there"
        )
    if not numbers:
        raise ValueError(f"{directory / 'run.json'} has no launch that trained update {step}: restore it from a copy")
    number = numbers[-1]
    record = segments[number]
    if record["plan_version"] != PLAN_VERSION:
        raise ValueError(
            f"update {step} was planned by plan version {record['plan_version']}, this version plans by {PLAN_VERSION}: install "
            f"openwavlm {record['versions']['openwavlm']}, which trained it as run.json says"
        )
    return Segment(configs[number], config, record, number)


def share_of(record: Mapping[str, Any], data: Mapping[str, Any]) -> float:
    """Share by which a launch held out its speakers, from its entry and its data node.

    Launches before 2026-11-29 recorded none: `data.validation_share` itself was their share, even if it held out no speaker.
    """
    share: float = record.get("validation_share", data.get("validation_share", Data.validation_share))
    return share


def newest_share(run: Path) -> float | None:
    """Share by which a run's newest launch held out its speakers; None for a folder without launches."""
    if not (run / "config.yaml").is_file():
        return None
    segments = RunRecord(run).content["segments"]
    return share_of(segments[-1], read_config(run / "config.yaml")["data"]) if segments else None


def kept_share(config: RunConfig, directory: Path) -> float | None:
    """Share that a launch takes over: of its run's newest launch, or of the run that it branches from, if the split in its config is equal.

    None for a first launch and after a change of `data.validation_share` or `data.split_seed`.
    """
    branch_from = Path(config.branch_from) if config.branch_from else None
    parents = [branch_from.resolve().parents[1]] if branch_from is not None and branch_from.is_file() else []
    for run in [directory, *parents]:
        share = newest_share(run)
        if share is not None:
            before = read_config(run / "config.yaml")["data"]
            names = ("validation_share", "split_seed")
            same = all(before.get(name, getattr(Data, name)) == getattr(config.data, name) for name in names)
            return share if same else None
    return None


def names_of_checkpoint(checkpoint: Path, fingerprints: dict[str, str]) -> dict[str, str]:
    """Fingerprints of the names (`metadata`) of the shards that a checkpoint was trained on, if there are some.

    Those of a checkpoint of format 1 lack the names, which `openwavlm upgrade` added to the launches.
    """
    kept = RunRecord(checkpoint.resolve().parents[1]).content
    step = int(checkpoint.stem.split("-")[1])
    launches = [record for record in kept["segments"] if record["from_step"] < step]
    of_launch = launches[-1].get("fingerprints", kept.get("fingerprints", {})) if launches else {}
    return names_in(fingerprints) or names_in(of_launch)


def _configs(config: dict[str, Any], segments: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The config of every launch, from the newest one and the changes of each launch."""
    found, flat = [], flatten(config)
    for record in reversed(segments):
        # Also if config.yaml lacks the last changes, because a launch was killed between writing run.json and renaming it.
        found.append(nested(_changed(flat, record, 1)))
        flat = _changed(flat, record, 0)
    return found[::-1]


def _changed(flat: dict[str, Any], record: dict[str, Any], which: int) -> dict[str, Any]:
    """The keys before (0) or after (1) a launch's changes, where None stands for a key that was not there, or for its default."""
    values = {new: change[which] for key, change in record["changes"].items() if (new := current_key(key)) is not None}
    return {key: value for key, value in {**flat, **values}.items() if value is not None or key not in values}


def follow_plan(schedule: Schedule, segment: Segment, key: str, directory: Path, step: int) -> None:
    """Sets a schedule to the plan that a launch followed; the checkpoints of the run save planning the past epochs again.

    Args:
        schedule: The schedule of that launch's config and data, as if it were the run's first.
        key: Plan key of that config and data.

    Raises:
        ValueError: If the plan is another one.
    """
    plan = segment.record["plan"]
    if plan["key"] != key:
        raise ValueError(
            f"the plan that update {step} followed cannot be made again from config.yaml, run.json and the shards (its key is {key}, but "
            f"was {plan['key']}): restore config.yaml and run.json from a copy of the run"
        )
    schedule.begin_as(plan)
    states = [
        state
        for state in _checkpoint_plans(directory / "checkpoints")
        if state["key"] == key and _beginning(state) == schedule.beginning()
    ]
    if states:
        schedule.restore(max(states, key=lambda state: sum(len(one["starts"]) for of in state["streams"].values() for one in of)))


def _beginning(state: dict[str, Any]) -> dict[str, Any]:
    epochs = {name: [stream["first_epoch"] for stream in members] for name, members in state["streams"].items()}
    return {"origin": state["origin"], "first_epochs": epochs}


def _checkpoint_plans(directory: Path) -> Iterator[dict[str, Any]]:
    """The plans in the checkpoints, except damaged ones, of which it warns, and those that the run deletes meanwhile."""
    for path in checkpoints_in(directory):
        try:
            state = read_checkpoint(path)["openwavlm"]["plan"]
        except FileNotFoundError:
            continue
        except ValueError as error:
            log.warning("the plan in %s is skipped: %s", path.name, error)
            continue
        if _is_plan(state) and state["plan_version"] == PLAN_VERSION:
            yield state


def _is_plan(state: dict[str, Any]) -> bool:
    """True if a checkpoint's plan has the entries that `follow_plan` compares."""
    streams = state.get("streams")
    return (
        {"key", "plan_version", "origin"} <= state.keys()
        and isinstance(streams, dict)
        and all(isinstance(members, list) for members in streams.values())
        and all(isinstance(one, dict) and {"first_epoch", "starts"} <= one.keys() for of in streams.values() for one in of)
    )
