"""Held-out rows that the encoder was trained on, by the record of its pre-training."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.downstream.data import OpenTask
from openwavlm.downstream.split import TEST, VALIDATION
from openwavlm.evaluation.unseen import records_all, unseen_rows
from openwavlm.shards.index import Index
from openwavlm.shards.splits import audio_in
from openwavlm.training.run_files import read_config

log = logging.getLogger(__name__)
_SHOWN = 3


def check_unseen(opened: OpenTask, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Compares the held-out rows with what the encoder of `init` was trained on.

    Audio is compared where `init` is a run that still finds its shards; else speakers, by the record in the checkpoint's folder.

    Returns:
        For `run.json`: `known`, whether the whole training data of the encoder are on record, and `rows`, the number of held-out rows
        that it was trained on.

    Raises:
        ValueError: If there are such rows, unless `data.allow_overlap` is set.
    """
    fit = entry.get("trained_on")
    if entry["dialect"] == "control" or entry.get("untrained"):
        return {"known": True, "rows": 0}
    seen: list[str] = []
    for name, index in opened.indexes.items():
        held_out = np.isin(opened.parts[name], (VALIDATION, TEST))
        if not held_out.any():
            continue
        found = np.zeros(len(index), dtype=bool)
        for trained in _shards_of(Path(entry["path"])):
            found |= audio_in(np.asarray(index.pcm[:]), trained)
        if fit is not None and index.fingerprint in _fingerprints(fit):
            found |= ~unseen_rows(index, fit)
        seen += [index.keys[row] for row in np.flatnonzero(found & held_out).tolist()]
    known = records_all(fit)
    if seen:
        listed = ", ".join(seen[:_SHOWN]) + (", …" if len(seen) > _SHOWN else "")
        sentence = f"{len(seen)} held-out rows are in the pre-training of {entry['path']} ({listed})"
        if not opened.data.allow_overlap:
            raise ValueError(
                f"held-out data must be new to the model, but {sentence}: hold out others, pre-train without them, or set "
                "data.allow_overlap=true"
            )
        log.warning("%s (data.allow_overlap)", sentence)
    elif not known:
        log.warning("%s does not record all of its training data: held-out rows may be among them", entry["path"])
    return {"known": known, "rows": len(seen)}


def _shards_of(path: Path) -> list[Index]:
    """The training shard sets of a run of pre-training that are where its config names them."""
    if not (path / "config.yaml").is_file():
        return []
    sources = read_config(path / "config.yaml")["data"]["sources"].values()
    return [Index.open(source["shards"], check=False) for source in sources if (Path(source["shards"]) / "index").is_dir()]


def _fingerprints(fit: Mapping[str, Any] | None) -> set[str]:
    return set() if fit is None else {*fit.get("indexes", []), *_fingerprints(fit.get("before"))}
