"""Initialisation of a new run from the encoder of a checkpoint of any dialect: domain adaptation, or WavLM from a HuBERT."""

import logging
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from openwavlm.checkpoints.about import read_about
from openwavlm.checkpoints.account import NO_GATED_BIAS
from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.labels.teacher import model_hash
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM

log = logging.getLogger(__name__)

_TABLE = "encoder.relative_bias.embedding.weight"
# Free in the run; all other settings must equal the checkpoint's.
_FREE = frozenset(
    {
        *("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop", "layer_drop_mode"),
        *("feature_grad_mult", "attention_backend", "recompute", "compile_layers"),
    }
)


def begin_from(model: WavLM, path: Path | str) -> dict[str, Any]:
    """Copies the encoder of a checkpoint that `load_checkpoint` reads into a new run's `model`; the prediction head stays random.

    Returns:
        Entry for `run.json`: path, dialect, hash of the model, tensors that were left out and made, and the training data if the
        checkpoint's folder has them (`openwavlm.json`).

    Raises:
        ValueError: As `load_checkpoint` does; if the run's model has another architecture or normalisation.
    """
    loaded, account = load_checkpoint(path)
    neutral = account.created.get(_TABLE) == NO_GATED_BIAS
    check_same_architecture(model.config, loaded.config, path, neutral=neutral)
    state = loaded.state_dict()
    if neutral:  # all zeros, so any buckets fit
        state[_TABLE] = torch.zeros_like(model.state_dict()[_TABLE])
    model.load_state_dict(state)
    log.info("the encoder is initialised from %s (%s), the prediction head is random", path, account.dialect)
    about = read_about(Path(path) if Path(path).is_dir() else Path(path).parent) or {}
    return {
        "path": str(path),
        "dialect": account.dialect,
        "model": model_hash(loaded),
        "left_out": account.ignored,
        "made": account.created,
        "trained_on": about.get("trained_on"),
    }


def check_same_beginning(before: dict[str, Any] | None, now: dict[str, Any], allow_change: list[str]) -> None:
    """Raises a `ValueError` if `run.json` names another initial model and `init_from` is not allowed to change."""
    if before is not None and before["model"] != now["model"] and "init_from" not in allow_change:
        raise ValueError(
            f"this run was initialised from the model {before['model'][:12]} of {before['path']}, but {now['path']} now holds "
            f"{now['model'][:12]}: restore it, start a new run under another name, or allow_change=[init_from]"
        )


def check_same_architecture(run: WavLMConfig, checkpoint: WavLMConfig, origin: Path | str, *, neutral: bool = False) -> None:
    """Raises a `ValueError` if the checkpoint, named `origin`, has another architecture than the run's model.

    Args:
        neutral: Whether the gated bias was made neutral, so that any buckets fit.
    """
    free = _FREE | ({"num_buckets", "max_distance"} if neutral else set())
    names = [field.name for field in fields(run) if field.name not in free]
    other = [name for name in names if getattr(run, name) != getattr(checkpoint, name)]
    if other:
        overrides = " ".join(f"model.{name}={_written(getattr(checkpoint, name))}" for name in other)
        raise ValueError(
            f"a run that is initialised from a checkpoint must have its architecture and normalisation, but {origin} differs from this "
            f"run's model in {', '.join(other)}: add {overrides}"
        )


def _written(value: Any) -> str:
    """A value in the form of an override."""
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)
