"""Checks before the first update, of a launch and of all trials of a sweep."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from openwavlm.batches.mixing import check_noise_bank
from openwavlm.batches.settings import Batching
from openwavlm.batches.sources import OpenData
from openwavlm.checkpoints.head import codebooks_in
from openwavlm.runs.branch import check_branch, check_head
from openwavlm.runs.init_from import begin_from, check_held_out_unseen
from openwavlm.runs.run_directory import RunRecord, changed_keys, refuse_changes
from openwavlm.runs.segments import kept_share
from openwavlm.shards.index import Index
from openwavlm.training.build import make_model
from openwavlm.training.checkpoint import newest_checkpoint
from openwavlm.training.config import RunConfig
from openwavlm.training.run_files import read_config


def check_world_size(world_size: int, batching: Batching) -> None:
    """Raises a `ValueError` for more processes than micro-batches."""
    if world_size > batching.slots:
        raise ValueError(
            f"{world_size} processes but only {batching.slots} micro-batches a step: use at most {batching.slots} processes, or lower "
            "batch.micro_seconds (which changes the micro-batches, so start a new run)"
        )


def open_data(config: RunConfig, validation_share: float | None = None) -> OpenData:
    """Opens the data of a run, and checks that they fit the config; `validation_share` as of `segments.kept_share`."""
    opened = OpenData(
        config.data,
        config.batch,
        config.seed,
        validation_share=validation_share,
        labels_at_once_bytes=config.loader.label_check_mib << 20,
    )
    check_noise_bank(config.mixing, len(opened.noise_index) if opened.noise_index is not None else 0)
    config.loss.target_weights(len(opened.classes))  # checked here with the other data
    return opened


def embeddings_of(config: RunConfig, classes: Sequence[int]) -> list[int]:
    """Number of label embeddings of the run's heads, one per label set."""
    return [config.head.special_rows + size for size in classes]


class CheckedData(NamedTuple):
    """Classes, fingerprints, places and held-out rows of an `OpenData` that was checked."""

    classes: tuple[int, ...]
    fingerprints: dict[str, str]
    places: dict[str, str]
    held_out: dict[str, tuple[Index, np.ndarray]]


def check_launch(values: dict[str, Any], directory: Path, opened: dict[str, CheckedData]) -> None:
    """Makes the checks of a launch before its first update; trains and writes nothing.

    Args:
        directory: Run directory; may not exist.
        opened: Data that were checked, by their part of the config; new ones are added.

    Raises:
        ValueError: If the config, the data or the state of the run directory does not allow the launch.
    """
    config = RunConfig.of(values)
    check_world_size(int(os.environ.get("WORLD_SIZE", "1")), config.batch)
    share = kept_share(config, directory)
    data = json.dumps([share, *(values[key] for key in ("data", "batch", "mixing", "loss", "seed"))], sort_keys=True)
    if data not in opened:
        found = open_data(config, share)
        opened[data] = CheckedData(tuple(found.classes), found.fingerprints(), found.places(), found.held_out_rows())
        found.close()
    classes, fingerprints, places, held_out = opened[data]
    with torch.device("meta"):
        model = make_model(config, classes)
    begun = None
    if config.init_from:
        new_head = config.init_head == "new"
        begun = begin_from(model.to_empty(device="cpu"), config.init_from, codebooks_in(fingerprints), new_head=new_head)
    allowed, known = config.allow_change, directory / "config.yaml"
    if known.exists():
        refuse_changes(changed_keys(read_config(known), values), allowed, f"the run in {directory}")
        RunRecord(directory).check_fingerprints(dict(fingerprints), allowed, places)
    checkpoint = newest_checkpoint(directory / "checkpoints")
    if checkpoint is None and config.branch_from:
        checkpoint = Path(config.branch_from)
        check_branch(checkpoint, values, config.optim, allowed)
    if checkpoint is not None:
        check_head(checkpoint, embeddings_of(config, classes), fingerprints)
    elif begun is not None:
        check_held_out_unseen(held_out, config.data.validation, begun, first=True)
