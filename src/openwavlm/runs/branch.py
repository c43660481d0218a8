"""Branches: runs that share another run's trajectory up to a checkpoint, such as a decay from a stable learning rate."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openwavlm.runs.run_directory import changed_keys, refuse_changes
from openwavlm.runtime.atomic import write_atomically
from openwavlm.training.checkpoint import verified
from openwavlm.training.checkpoint_reader import read_checkpoint
from openwavlm.training.optim import Optim
from openwavlm.training.records import BRANCHED
from openwavlm.training.run_files import read_config

_OWN = ("name", "branch_from", "optim.updates")  # may differ in a branch without allow_change
log = logging.getLogger(__name__)


def head_sizes(state: dict[str, Any], prefix: str = "") -> list[int]:
    """Number of label embeddings of each head in a state dict."""
    heads = [state[f"{prefix}label_embeddings"]]
    while (key := f"{prefix}other_heads.{len(heads) - 1}.label_embeddings") in state:
        heads.append(state[key])
    return [len(head) for head in heads]


def check_head(checkpoint: Path, embeddings: Sequence[int], fingerprints: dict[str, str]) -> None:
    """Refuses a checkpoint with a head of another size than the run's, and warns of a head that was trained on another codebook.

    Args:
        embeddings: Number of label embeddings that the run needs, of each label set.
        fingerprints: Of the data as they are.

    Raises:
        ValueError: If the numbers differ, even with allow_change=[data].
    """
    content = read_checkpoint(checkpoint)
    found = head_sizes(content["state_dict"], "model.")
    if found != list(embeddings):
        was, wanted = (" and ".join(map(str, sizes)) for sizes in (found, embeddings))
        raise ValueError(
            f"the head of {checkpoint} predicts {was} labels, but the data need {wanted}: another codebook needs a new head, so start a "
            "new run under another name and without branch_from, or put the old labels back"
        )
    known: dict[str, str] = content["openwavlm"]["fingerprints"]
    if any(known.get(key) != value for key, value in fingerprints.items() if key.split(".")[0] == "codebook"):
        log.warning(
            "the head of %s was trained on another codebook, which allow_change permits: it is retrained",
            checkpoint,
        )


def begin_branch(
    checkpoint: Path, directory: Path, config: dict[str, Any], optim: Optim, allow_change: list[str], check: Callable[[], None]
) -> dict[str, Any]:
    """Copies the records up to another run's checkpoint into a new run's directory, after all checks, `check` the last one.

    Returns:
        The differences, for `run.json`: key → (there, here).

    Raises:
        ValueError: If the checkpoint is missing, damaged or not of a run; if its run differs in a key that is not in `allow_change`;
            if it is after the end or in the decay of this run.
    """
    changes = check_branch(checkpoint, config, optim, allow_change)
    parent = checkpoint.resolve().parents[1]
    check()
    for name in BRANCHED:
        if (parent / name).is_file():  # also over files of a launch that was killed before its first checkpoint
            write_atomically(directory / name, (parent / name).read_bytes())
    log.info("branching from %s", checkpoint)
    return changes


def check_branch(checkpoint: Path, config: dict[str, Any], optim: Optim, allow_change: list[str]) -> dict[str, Any]:
    """The checks of `begin_branch` that need no data; writes nothing, and returns the differences: key → (there, here)."""
    if not checkpoint.is_file() or not verified(checkpoint):
        raise ValueError(
            f"branch_from must be a whole checkpoint, as in runs/NAME/checkpoints/step-00001000.ckpt, but is {checkpoint}"
        )
    parent = checkpoint.resolve().parents[1]
    if not (parent / "config.yaml").is_file():
        raise ValueError(f"branch_from must lie in a run directory, but {parent} has no config.yaml")
    theirs = read_config(parent / "config.yaml")
    changes = {key: values for key, values in changed_keys(theirs, config).items() if key not in _OWN}
    refuse_changes(changes, allow_change, f"the run {parent} that it branches from")
    their_optim = Optim(**{name: value for name, value in theirs["optim"].items() if name in Optim.__dataclass_fields__})
    _check_rate(int(checkpoint.stem.split("-")[1]), optim, their_optim, checkpoint)
    return changes


def _check_rate(step: int, optim: Optim, parent: Optim, checkpoint: Path) -> None:
    if step >= optim.updates:
        raise ValueError(
            f"a branch begins after {checkpoint}, but optim.updates={optim.updates} is not above its {step} updates: raise it"
        )
    decays_from = optim.updates - optim.decay_updates
    if optim.schedule != "linear" and step > decays_from:
        raise ValueError(
            f"a branch must begin before its decay, but {checkpoint} has {step} updates and the decay of optim.updates={optim.updates} "
            f"begins at {decays_from}: raise optim.updates, lower optim.decay_share, or branch from an earlier checkpoint"
        )
    if parent.schedule != "linear" and step > parent.updates - parent.decay_updates:
        log.warning("%s lies in the decay of its run, from update %d on", checkpoint, parent.updates - parent.decay_updates)
    before, after = parent.learning_rate(step), optim.learning_rate(step)
    if abs(after - before) > 0.01 * before:
        log.warning("the learning rate goes from %.3g to %.3g at the branch, after update %d", before, after, step)
