"""Whose speech `openwavlm quality` judges and fits on: voices that nothing it judges has heard (DESIGN §8)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.checkpoints.about import read_about
from openwavlm.evaluation.heard import unheard_rows
from openwavlm.evaluation.quality_settings import Asked
from openwavlm.evaluation.sets import ProbeSet, check_disjoint_speakers
from openwavlm.evaluation.shard_sets import Judged, speech_set
from openwavlm.labels.store import LabelStore
from openwavlm.shards.index import Index
from openwavlm.shards.splits import validation_rows

log = logging.getLogger(__name__)

DEFAULT_HELD_OUT = 0.5


def judged_rows(asked: Asked, index: Index, stores: Mapping[Path, LabelStore]) -> np.ndarray:
    """Rows of held-out speakers: those that neither codebooks nor the model have heard, or the split that was asked for.

    Raises:
        ValueError: If something has heard all of them, or the split holds none out.
    """
    kept = np.ones(len(index), dtype=bool)
    heard = {} if asked.allow_overlap else _heard(asked, index, stores)
    other = Index.open(asked.fit) if asked.fit and heard else None
    for name, fit in heard.items():
        unheard = unheard_rows(index, fit, other)
        if not unheard.any():
            raise ValueError(
                f"only voices that were not trained on are judged, but {name} may have heard all of {index.path}: judge other shards (for "
                "labels, label them with that codebook), give as fit= the one shard set that was trained on if it has other voices, or "
                "set allow_overlap=true to see the figures anyway"
            )
        if not unheard.all():
            log.info(f"{unheard.sum()} of {len(index)} rows of {index.path} are of voices that {name} has surely not heard")
        kept &= unheard
    share = DEFAULT_HELD_OUT if asked.held_out is None and not asked.fit and kept.all() else asked.held_out
    if share:
        kept &= validation_rows(index, share=share, split_seed=asked.split_seed)
    if not kept.any():
        raise ValueError(
            f"some speakers of {index.path} must be judged, but the split holds none of {len(index.speakers) - 1} out: give fit=DIR with "
            "other voices, or another held_out or split_seed"
        )
    return np.flatnonzero(kept)


def _heard(asked: Asked, index: Index, stores: Mapping[Path, LabelStore]) -> dict[str, dict[str, Any]]:
    """What codebooks and the model say of their training; nothing of those that do not know it."""
    found: dict[str, dict[str, Any]] = {}
    for folder, store in stores.items():
        if {"validation_share", "split_seed"} <= set(store.codebook_fitted):
            hours = store.codebook_fitted.get("hours_by_source")
            found[f"the codebook of {folder}"] = store.codebook_fitted | {"sources": None if hours is None else [*hours]}
    known = (read_about(Path(asked.encoder)) if asked.encoder else None) or {}
    if "trained_on" in known:
        found[f"the model {asked.encoder}"] = known["trained_on"]
        if not _says_all(known):
            log.warning(f"{asked.encoder} began as a model that does not say what it was trained on: it may have heard any voice")
    elif index.fingerprint in known.get("fingerprints", {}).values() and asked.held_out is None:
        raise ValueError(
            f"a model is judged on voices that it was not trained on, but {asked.encoder} was trained on {index.path}: give held_out= and "
            "split_seed= as that run's data.validation_share and split_seed, without fit, export the run again, which notes them, or "
            "set allow_overlap=true"
        )
    return found


def _says_all(about: Mapping[str, Any]) -> bool:
    """Whether an `openwavlm.json` says of every model that this one began as what it was trained on."""
    heard = about["trained_on"]
    if "init_from" in about and "before" not in heard:  # exported before this was noted
        return False
    while heard is not None and "before" in heard:
        heard = heard["before"]
    return heard is not None


def fitted_set(asked: Asked, index: Index, rows: np.ndarray, judged: Judged) -> ProbeSet:
    """Speech of other voices to fit codebooks on: of the shard set `fit`, or of what is left of the judged one.

    Raises:
        ValueError: If a voice would be on both sides.
    """
    phones = judged.utterances.inventory
    if asked.fit:
        other = Index.open(asked.fit)
        candidates = np.arange(len(other))
        if other.fingerprint == index.fingerprint:
            candidates = np.setdiff1d(candidates, rows)
        fit = speech_set(Path(asked.fit), candidates, asked.fit_seconds, phones)
    elif asked.held_out == 0:
        log.warning("codebooks are fitted on the voices that they are judged on (held_out=0): no evidence about other voices")
        return speech_set(Path(asked.shards), np.array(judged.rows), asked.fit_seconds, phones)
    else:
        fit = speech_set(Path(asked.shards), np.setdiff1d(np.arange(len(index)), rows), asked.fit_seconds, phones)
    if not asked.allow_overlap:
        check_disjoint_speakers(fit=fit, judged=judged.utterances)
    return fit
