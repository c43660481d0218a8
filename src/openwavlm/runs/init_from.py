"""Initialisation of a new run from a checkpoint of any dialect: domain adaptation, WavLM from a HuBERT, or a release's labels."""

import logging
from collections.abc import Container, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwavlm.checkpoints.about import read_about
from openwavlm.checkpoints.account import NO_GATED_BIAS
from openwavlm.checkpoints.head import SavedHead, read_heads, tensors_of
from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.evaluation.unseen import records_all, unseen_rows
from openwavlm.labels.teacher import model_hash
from openwavlm.model.config import WavLMConfig
from openwavlm.model.pretraining import LabelHead, WavLMForPretraining
from openwavlm.shards.index import Index
from openwavlm.shards.splits import split_names

log = logging.getLogger(__name__)

_TABLE = "encoder.relative_bias.embedding.weight"
# Free in the run; all other settings must equal the checkpoint's.
_FREE = frozenset(
    {
        *("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop", "layer_drop_mode"),
        *("feature_grad_mult", "attention_backend", "recompute", "compile_layers"),
    }
)


def begin_from(
    model: WavLMForPretraining,
    path: Path | str,
    codebooks: Sequence[str],
    *,
    new_head: bool = False,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Copies the encoder of a checkpoint that `load_checkpoint` reads into a new run's `model`, and prediction heads that fit.

    A head is copied if the checkpoint's folder is an export of ours with a head that was trained on the same codebook and has the same
    sizes; else it stays random. The log names the reason.

    Args:
        codebooks: Hash of the codebook of each of the run's label sets.
        new_head: Leaves all heads random.
        before: Entry of an earlier launch, which ended before its first checkpoint. If a version that read the encoder alone wrote it,
            the run begins again as it did: all heads stay random, and the new entry has no `head` either.

    Returns:
        Entry for `run.json`: path, dialect, hash of the model and of the head of each label set (`head`; None = random), tensors that
        were left out and made, and the training data if the checkpoint's folder has them (`openwavlm.json`).

    Raises:
        ValueError: As `load_checkpoint` and `read_heads` do; if the run's model has another architecture or normalisation.
    """
    loaded, account = load_checkpoint(path)
    neutral = account.created.get(_TABLE) == NO_GATED_BIAS
    check_same_architecture(model.wavlm.config, loaded.config, path, neutral=neutral)
    state = loaded.state_dict()
    if neutral:  # all zeros, so any buckets fit
        state[_TABLE] = torch.zeros_like(model.wavlm.state_dict()[_TABLE])
    model.wavlm.load_state_dict(state)
    about = read_about(Path(path) if Path(path).is_dir() else Path(path).parent) or {}
    encoder_alone = before is not None and "head" not in before
    unread = "init_head=new" if new_head else "the run began with a new head" if encoder_alone else ""
    heads = _begin_heads(model, [] if unread else _saved_heads(Path(path), about), codebooks, unread)
    log.info("the encoder is initialised from %s (%s); %s", path, account.dialect, "; ".join(sentence for _, sentence in heads))
    trained_on = about.get("trained_on")
    if trained_on is not None and "init_from" in about:  # exports of before `before` was noted lack it
        trained_on = {"before": None} | trained_on
    return {
        "path": str(path),
        "dialect": account.dialect,
        "model": model_hash(loaded),
        **({} if encoder_alone else {"head": [hash for hash, _ in heads]}),
        "left_out": account.ignored,
        "made": account.created,
        "trained_on": trained_on,
    }


def _saved_heads(path: Path, about: Mapping[str, Any]) -> list[SavedHead]:
    """Heads in the folder of a checkpoint; none if the checkpoint is a file that `about`, the folder's `openwavlm.json`, does not name."""
    if path.is_dir():
        return read_heads(path, about)
    return read_heads(path.parent, about) if path.name in about.get("files", {}) else []


@torch.no_grad()
def _begin_heads(
    model: WavLMForPretraining, saved: Sequence[SavedHead], codebooks: Sequence[str], unread: str
) -> list[tuple[str | None, str]]:
    """Copies those of the `saved` heads that belong to the run's codebooks; `unread` is the reason why none was read, or "".

    Returns:
        For each label set the hash of its head, None for a new one, and a sentence for the log.
    """
    found = list[tuple[str | None, str]]()
    for number, (head, codebook) in enumerate(zip(model.heads(), codebooks, strict=True)):
        which = f"label set {number + 1}: " if len(codebooks) > 1 else ""
        theirs = next((one for one in saved if one.codebook == codebook), None)
        if theirs is None:
            found.append((None, f"{which}{unread or _absence(saved, codebook)}: the head is new"))
        elif misfit := _misfit(head, model.special_rows, theirs):
            found.append((None, f"{which}{misfit}: the head is new"))
        else:
            for ours, tensor in zip(tensors_of(head), theirs[1:], strict=True):
                ours.copy_(tensor)
            found.append((theirs.hash(), f"{which}labels of the same codebook (hash {codebook[:8]}…): the head is its head"))
    return found


def _absence(saved: Sequence[SavedHead], codebook: str) -> str:
    """Reason why no saved head belongs to a codebook."""
    if not saved:
        return "there is no prediction head beside it"
    hashes = [f"{one.codebook[:8]}…" for one in saved if one.codebook is not None]
    there = f"hash {' and '.join(hashes)}" if hashes else "not on record"
    return f"labels of another codebook ({there}, here {codebook[:8]}…)"


def _misfit(head: WavLMForPretraining | LabelHead, special_rows: int, found: SavedHead) -> str:
    """Reason why the saved head of the same codebook has other sizes than the run's; "" if it has not."""
    ours = tensors_of(head)
    if found.shapes() != [tuple(tensor.shape) for tensor in ours]:
        final_dim, dim = found.weight.shape
        rows = special_rows + len(found.embeddings) - len(head.label_embeddings)  # one codebook has one number of classes
        there = f"dim={dim}, final_dim={final_dim} and special_rows={rows}"
        return f"its head has {there}, this run's {ours[0].shape[1]}, {ours[0].shape[0]} and {special_rows}"
    return ""


def check_held_out_unseen(
    held_out: Mapping[str, tuple[Index, np.ndarray]], validation: Container[str], begun: Mapping[str, Any], *, first: bool
) -> int | None:
    """Compares the speakers that a run holds out with those that its initial model was trained on.

    Args:
        held_out: Sources and validation sets of the run: name → index and mask of the held-out rows, bool (rows,).
        validation: Names of the validation sets, which are refused only if the model was trained on that very shard set: of another
            set of the same source its record does not name the speakers.
        begun: Entry of `begin_from`.
        first: Whether this is the run's first launch. Later launches only log a warning: the run has been trained.

    Returns:
        Number of held-out speakers (recordings, where they are unknown) that the model was perhaps trained on; None for no known one
        and an incomplete record of its training data.

    Raises:
        ValueError: In the first launch, if the model was perhaps trained on a held-out speaker.
    """
    fit, path = begun.get("trained_on"), begun["path"]
    known, seen, refused = _indexes_of(fit), set[str](), False
    for name, (index, rows) in held_out.items():
        of_set = split_names(index, rows & ~unseen_rows(index, fit)) if fit is not None and rows.any() else []
        refused |= first and bool(of_set) and (name not in validation or index.fingerprint in known)
        seen |= set(of_set)
    if not seen:
        if not records_all(fit):
            log.warning("%s does not record all of its training data: it may have been trained on held-out speakers", path)
        return 0 if records_all(fit) else None
    assert fit is not None
    named = f"{path} was perhaps trained on {len(seen)} of the speakers that this run holds out ({', '.join(sorted(seen)[:3])}"
    named += ", …)" if len(seen) > 3 else ")"
    if refused:
        raise ValueError(
            f"no run may be validated on speakers that its initial model was trained on, but {named}: hold out others (that training held "
            f"out a share of {fit['validation_share']:.4g} by split_seed={fit['split_seed']}), name sets of other speakers in "
            "data.validation, or set data.validation_share=0"
        )
    log.warning("%s: figures of validation are no evidence about new speakers", named)
    return len(seen)


def _indexes_of(fit: Mapping[str, Any] | None) -> set[str]:
    """Fingerprints of the shard sets of a `trained_on` and of its `before`."""
    return set() if fit is None else {*fit.get("indexes", []), *_indexes_of(fit.get("before"))}


def check_same_beginning(before: dict[str, Any] | None, now: dict[str, Any], allow_change: list[str]) -> None:
    """Raises a `ValueError` if `run.json` names another initial model or head and `init_from` is not allowed to change."""
    if before is not None and before["model"] != now["model"] and "init_from" not in allow_change:
        raise ValueError(
            f"this run was initialised from the model {before['model'][:12]} of {before['path']}, but {now['path']} now holds "
            f"{now['model'][:12]}: restore it, start a new run under another name, or allow_change=[init_from]"
        )
    # The data and sizes of the run decide too which head fits.
    allowed = {key.split(".")[0] for key in allow_change}
    if before is not None and before.get("head") != now.get("head") and not allowed & {"init_from", "init_head", "data", "model"}:
        raise ValueError(
            f"this run was initialised with another prediction head than {now['path']} gives it now: restore that folder, start a new "
            "run under another name, or allow_change=[init_from]"
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
