"""A run that begins at another run's checkpoint: the same trajectory up to there, another end (a decay from a stable rate, say)."""

import logging
import shutil
from pathlib import Path
from typing import Any

from openwavlm.training.checkpoint import verified
from openwavlm.training.run_directory import changed_keys, read_config, refuse_changes

_OWN = ("name", "branch_from", "optim.updates")  # what a branch has of its own without being asked about it
log = logging.getLogger(__name__)


def begin_branch(checkpoint: Path, directory: Path, config: dict[str, Any], allow_change: list[str]) -> dict[str, Any]:
    """Checks that a new run may go on from another run's checkpoint, and copies the records up to there.

    Args:
        checkpoint: `runs/OTHER/checkpoints/step-….ckpt`.
        directory: The new run's directory.
        config: Its composed config.
        allow_change: Keys that may differ from the other run's.

    Returns:
        The differences, for `run.json`: key → (there, here).

    Raises:
        ValueError: If the checkpoint is missing or damaged, is none of a run, or belongs to a run that differs in a key that was not
            allowed to.
    """
    if not checkpoint.is_file() or not verified(checkpoint):
        raise ValueError(
            f"branch_from must be a whole checkpoint, as in runs/NAME/checkpoints/step-00001000.ckpt, but is {checkpoint}"
        )
    parent = checkpoint.resolve().parents[1]
    if not (parent / "config.yaml").is_file():
        raise ValueError(f"branch_from must lie in a run directory, but {parent} has no config.yaml")
    changes = {
        key: values for key, values in changed_keys(read_config(parent / "config.yaml"), config).items() if key not in _OWN
    }
    refuse_changes(changes, allow_change, f"the run {parent} that it branches from")
    for name in ("metrics.csv", "validation.csv"):
        if (parent / name).is_file() and not (directory / name).exists():
            shutil.copyfile(parent / name, directory / name)
    log.info("branching from %s", checkpoint)
    return changes
