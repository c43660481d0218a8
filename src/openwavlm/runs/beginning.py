"""The first two acts of a launch: open the data and the run's record, and find the checkpoint to begin at."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from openwavlm.batches.sources import OpenData
from openwavlm.runs.branch import begin_branch, check_head
from openwavlm.runs.check import check_world_size, embeddings_of, open_data
from openwavlm.runs.init_from import check_held_out_unseen
from openwavlm.runs.run_directory import RunRecord
from openwavlm.runs.segments import kept_share
from openwavlm.runtime.collectives import on_rank_zero, together
from openwavlm.training.checkpoint import newest_checkpoint
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.config import LaunchConfig, RunConfig

_Config = TypeVar("_Config", bound=LaunchConfig)


class RunData(Protocol):
    """The data of a run, open."""

    def fingerprints(self) -> dict[str, str]:
        """Identity of the data."""
        ...

    def close(self) -> None:
        """Stops planning ahead."""
        ...


_Data = TypeVar("_Data", bound=RunData)


@dataclass(frozen=True)
class Launch(Generic[_Config]):
    """One process of one launch; `values` are the config as plain values, for the records."""

    config: _Config
    values: dict[str, Any]
    directory: Path
    rank: int
    world_size: int


@dataclass(frozen=True)
class Beginning(Generic[_Data]):
    """Data, record and state that a launch begins with.

    Attributes:
        data: Shards and labels (in fine-tuning, targets), open.
        record: The run's `run.json`.
        checkpoint: The checkpoint that it resumes; None = the first launch of a run of its own.
        state: The checkpoint's entries beside weights and optimiser.
        own: Whether the checkpoint is of this run, and not of the run that this one branches from.
        changes: Config keys that differ from the launch or the run before: key → (before, now).
    """

    data: _Data
    record: RunRecord
    checkpoint: Path | None
    state: dict[str, Any] | None
    own: bool
    changes: dict[str, Any]

    @property
    def step(self) -> int:
        """Updates that are done."""
        return int(self.state["step"]) if self.state else 0

    @property
    def skipped(self) -> int:
        """Skipped updates among them."""
        return int(self.state["voids"]) if self.state else 0


def open_run(launch: Launch[RunConfig]) -> tuple[OpenData, RunRecord]:
    """Act 1: opens data and record; a `ValueError` if they do not fit the config, the machine or the launches before."""
    config = launch.config
    check_world_size(launch.world_size, config.batch)
    if config.model.layer_drop_mode == "skip" and launch.world_size > 1:
        raise ValueError("model.layer_drop_mode=skip works on one process only (ranks would skip different layers): use where")
    data: OpenData = together(lambda: open_data(config, kept_share(config, launch.directory)))
    fingerprints = data.fingerprints()
    if together(lambda: fingerprints) != on_rank_zero(lambda: fingerprints):
        raise ValueError(
            "the ranks read different data: the shards, labels or noise on this node differ from rank 0's; copy them to every node again"
        )
    record = RunRecord(launch.directory)
    split = launch.values["data"] | {"validation_share": data.data.validation_share}
    record.add_training_data(split, fingerprints, data.source_names())
    record.check_fingerprints(fingerprints, config.allow_change, data.places())
    return data, record


def check_label_head(launch: Launch[RunConfig], data: OpenData, checkpoint: Path) -> None:
    """Refuses a checkpoint with a prediction head that does not fit the labels (`branch.check_head`)."""
    check_head(checkpoint, embeddings_of(launch.config, data.classes), data.fingerprints())


def resume(
    launch: Launch[Any], data: _Data, record: RunRecord, changes: dict[str, Any], check: Callable[[Path], None]
) -> Beginning[_Data]:
    """Act 2: finds the checkpoint to resume, of this run or of the one that it branches from; `check` refuses one with another head.

    Raises:
        ValueError: If the checkpoints are lost, or their head does not fit the data.
    """
    config = launch.config
    found = on_rank_zero(lambda: newest_checkpoint(launch.directory / "checkpoints"))
    own = found is not None
    if not own:
        on_rank_zero(record.refuse_lost_checkpoints)
        on_rank_zero(record.warn_of_lost_updates)
    if found is not None:
        check(found)
    elif config.branch_from:
        found = Path(config.branch_from)
        changes = on_rank_zero(
            partial(
                begin_branch, found, launch.directory, launch.values, config.optim, config.allow_change, partial(check, found)
            )
        )
        record.inherit(RunRecord(found.resolve().parents[1]))
    return Beginning(data, record, found, read_checkpoint(found)["openwavlm"] if found else None, own, changes)


def note_held_out_seen(config: RunConfig, beginning: Beginning[OpenData]) -> None:
    """Notes in `run.json` how many held-out speakers the model of `init_from` was perhaps trained on; see `check_held_out_unseen`."""
    begun = beginning.record.content.get("init_from")
    if begun is not None:
        rows, first = beginning.data.held_out_rows(), beginning.checkpoint is None
        seen = together(lambda: check_held_out_unseen(rows, config.data.validation, begun, first=first))
        beginning.record.content["init_from"] = begun | {"held_out_seen": seen}
