"""Which rows of a shard set a codebook or a model has not heard, from what its folder says of its training."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from openwavlm.shards.index import Index
from openwavlm.shards.splits import check_same_names, validation_rows


def unheard_rows(index: Index, heard: Mapping[str, Any], other: Index | None = None) -> np.ndarray:
    """Marks the rows of voices that were surely not fitted on, however the shards were divided or grew since.

    Args:
        index: The shard set that is to be judged on.
        heard: `validation_share` and `split_seed` of the fit; where they are known its `indexes` (fingerprints), their names
            (`metadata` by fingerprint), the `sources` that it drew from, and `validation_indexes`, sets that it held out as a whole;
            `before`, the same of the model that it began as.
        other: A shard set; if all that was fitted on is in it, voices that it does not have are unheard.

    Returns:
        bool (rows,), True where the fit's own split holds the voice out, or the voice was not there to be heard, before it too.

    Raises:
        ValueError: If the index is one of `indexes`, but with other speakers, recordings, sources or languages.
    """
    unheard = _unheard_in(index, heard, other)
    return unheard & unheard_rows(index, heard["before"], other) if heard.get("before") else unheard


def _unheard_in(index: Index, heard: Mapping[str, Any], other: Index | None) -> np.ndarray:
    unheard = validation_rows(index, share=float(heard["validation_share"]), split_seed=int(heard["split_seed"]))
    indexes = heard.get("indexes", [])
    check_same_names(index, heard.get("metadata") or {}, "what is judged here")
    if index.fingerprint in indexes:
        return unheard
    if index.fingerprint in heard.get("validation_indexes", []):
        return np.ones(len(index), dtype=bool)
    sources = heard.get("sources")
    if sources is not None:
        # A row without a source could be of any.
        new = np.array([bool(name) and name not in sources for name in index.sources])
        unheard |= new[np.asarray(index.source[:])]
    if other is not None and indexes and set(indexes) == {other.fingerprint}:
        unheard |= ~_shared_voices(index, other)
    return unheard


def _shared_voices(index: Index, other: Index) -> np.ndarray:
    """Rows whose speaker, else recording, is in another index by name."""
    speaker = np.asarray(index.speaker[:])
    shared = np.isin(np.array(index.speakers), np.array(other.speakers))[speaker]
    unknown = speaker == 0
    shared[unknown] = np.isin(np.array(index.recordings), np.array(other.recordings))[np.asarray(index.recording[:])[unknown]]
    return shared
