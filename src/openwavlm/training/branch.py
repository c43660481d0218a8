"""A run that begins at another run's checkpoint: the same trajectory up to there, another end (a decay from a stable rate, say)."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

from openwavlm.training.checkpoint import verified
from openwavlm.training.run_directory import changed_keys, read_config, refuse_changes

_OWN = ("name", "branch_from", "optim.updates")  # what a branch has of its own without being asked about it
log = logging.getLogger(__name__)


def check_head(known: dict[str, str], fingerprints: dict[str, str], checkpoint: Path) -> None:
    """Refuses a checkpoint whose head predicts the labels of another codebook, whoever allowed the data to change.

    Args:
        known: What the checkpoint is bound to.
        fingerprints: Of the data as they are.
        checkpoint: For the message.

    Raises:
        ValueError: If a codebook differs, or their number.
    """
    before, now = ({key: value for key, value in of.items() if key.split(".")[0] == "codebook"} for of in (known, fingerprints))
    if before != now:
        was, wanted = (", ".join(value[:12] for _, value in sorted(of.items())) for of in (before, now))
        raise ValueError(
            f"the head of {checkpoint} predicts the labels of codebook {was}, but the data have those of {wanted}: a new codebook needs "
            "a new head, so start a new run under another name without branch_from, or put the old labels back"
        )


def begin_branch(
    checkpoint: Path, directory: Path, config: dict[str, Any], allow_change: list[str], fingerprints: dict[str, str]
) -> dict[str, Any]:
    """Checks that a new run may go on from another run's checkpoint, and copies the records up to there.

    Args:
        checkpoint: `runs/OTHER/checkpoints/step-….ckpt`.
        directory: The new run's directory.
        config: Its composed config.
        allow_change: Keys that may differ from the other run's.
        fingerprints: Of the new run's data.

    Returns:
        The differences, for `run.json`: key → (there, here).

    Raises:
        ValueError: If the checkpoint is missing or damaged, is none of a run, belongs to a run that differs in a key that was not
            allowed to, or has the head of another codebook.
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
    described = json.loads(checkpoint.with_name(checkpoint.name + ".json").read_text())
    check_head(described["fingerprints"] or {}, fingerprints, checkpoint)
    for name in ("metrics.csv", "validation.csv"):
        if (parent / name).is_file() and not (directory / name).exists():
            shutil.copyfile(parent / name, directory / name)
    log.info("branching from %s", checkpoint)
    return changes
