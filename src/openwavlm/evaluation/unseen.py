"""Speech that was not seen in training: disjoint speakers, no shared audio, and folders' records of their training data (DESIGN §8)."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.checkpoints.about import read_about
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.evaluation.settings import QualitySettings
from openwavlm.evaluation.shard_sets import Judged, speech_set
from openwavlm.labels.store import LabelStore
from openwavlm.shards.index import Index
from openwavlm.shards.splits import audio_in, check_same_names, settled_share, validation_rows

log = logging.getLogger(__name__)

DEFAULT_HELD_OUT = 0.5


def check_disjoint_speakers(**sets: ProbeSet) -> None:
    """Refuses sets that share a speaker: a figure on speakers that were fitted on is no evidence.

    Raises:
        ValueError: Naming two sets and a speaker of both.
    """
    seen: dict[str, str] = {}
    for name, probe_set in sets.items():
        for speaker in probe_set.speakers:
            if speaker in seen:
                raise ValueError(
                    f"training, dev and test speakers must be different people, but {speaker!r} is in {seen[speaker]} and {name}: "
                    "split by speaker"
                )
        seen |= dict.fromkeys(probe_set.speakers, name)


def check_unseen_audio(test: ProbeSet, trained_on: Iterable[tuple[Index, np.ndarray | None]]) -> None:
    """Refuses a test set with audio of the training data.

    Args:
        test: Held-out utterances.
        trained_on: Each index of the run with the mask bool (rows,) of its training rows; None for all rows.

    Raises:
        ValueError: If a test utterance equals a training row, or a clip inside a joined one, in every sample.
    """
    found = np.zeros(len(test), dtype=bool)
    for index, training in trained_on:
        found |= audio_in(test.pcm, index, training)
    names = [test.utterances[number].name or f"utterance {number}" for number in np.flatnonzero(found)]
    if names:
        raise ValueError(
            f"test audio must not be seen in training, but {len(names)} of {len(test)} test utterances are in the training data "
            f"({', '.join(names[:3])}{', …' if len(names) > 3 else ''}): remove them from the training data or from the test set"
        )


def unseen_rows(index: Index, fit: Mapping[str, Any], other: Index | None = None) -> np.ndarray:
    """Marks the rows of speakers that were surely not fitted on, however the shards were divided or grew since.

    Args:
        index: The shard set that is to be judged on.
        fit: `validation_share` and `split_seed` of the fit; where they are known its `indexes` (fingerprints), their names
            (`metadata` by fingerprint), the `sources` that it drew from, and `validation_indexes`, sets that it held out as a whole;
            `before`, the same of the model that it was initialised from.
        other: A shard set; if all data of the fit are in it, speakers that it lacks are unseen.

    Returns:
        bool (rows,), True where the fit's own split holds the speaker out or its data lack the speaker; the same of `before`.

    Raises:
        ValueError: If the index is one of `indexes`, but with other speakers, recordings, sources or languages.
    """
    unseen = _unseen_by_fit(index, fit, other)
    return unseen & unseen_rows(index, fit["before"], other) if fit.get("before") else unseen


def _unseen_by_fit(index: Index, fit: Mapping[str, Any], other: Index | None) -> np.ndarray:
    unseen = validation_rows(index, share=float(fit["validation_share"]), split_seed=int(fit["split_seed"]))
    indexes = fit.get("indexes", [])
    check_same_names(index, fit.get("metadata") or {}, "the codebook or model")
    if index.fingerprint in indexes:
        return unseen
    if index.fingerprint in fit.get("validation_indexes", []):
        return np.ones(len(index), dtype=bool)
    sources = fit.get("sources")
    if sources is not None:
        # A row without a source could be of any.
        new = np.array([bool(name) and name not in sources for name in index.sources])
        unseen |= new[np.asarray(index.source[:])]
    if other is not None and indexes and set(indexes) == {other.fingerprint}:
        unseen |= ~_speakers_in(index, other)
    return unseen


def _speakers_in(index: Index, other: Index) -> np.ndarray:
    """Marks rows with a speaker, else a recording, of another index, by name."""
    by_speaker = np.isin(index.speakers, other.speakers)[index.speaker[:]]
    by_recording = np.isin(index.recordings, other.recordings)[index.recording[:]]
    return np.where(np.asarray(index.speaker[:]) == 0, by_recording, by_speaker)


def judged_rows(settings: QualitySettings, index: Index, stores: Mapping[Path, LabelStore]) -> np.ndarray:
    """Rows of held-out speakers: those that neither codebooks nor the model were fitted on, or those of the split in `settings`.

    Raises:
        ValueError: If a fit may have seen all of them, or the split holds none out: neither a speaker that no fit has seen, nor, of
            fewer than two speakers, any.
    """
    kept = np.ones(len(index), dtype=bool)
    fits = {} if settings.allow_overlap else _fits(settings, index, stores)
    other = Index.open(settings.fit) if settings.fit and fits else None
    for name, fit in fits.items():
        unseen = unseen_rows(index, fit, other)
        if not unseen.any():
            raise ValueError(
                f"only speakers not seen in training are judged, but {name} may have seen all of {index.path}: choose other shards (for "
                "labels, label them with that codebook), set fit= to the training shards if those have other speakers, or set "
                "allow_overlap=true"
            )
        if not unseen.all():
            log.info(f"{unseen.sum()} of {len(index)} rows of {index.path} are of speakers that {name} has not seen")
        kept &= unseen
    share = DEFAULT_HELD_OUT if settings.held_out is None and not settings.fit and kept.all() else settings.held_out
    if share:
        if not _is_of_older_run(settings, index):
            share = settled_share([index], share=share, split_seed=settings.split_seed, key="held_out")
        kept &= validation_rows(index, share=share, split_seed=settings.split_seed)
    if not kept.any():
        raise ValueError(
            f"some speakers of {index.path} must be held out, but the split holds none of {len(index.speakers) - 1} out: set fit=DIR with "
            "other speakers, or another held_out or split_seed"
        )
    return np.flatnonzero(kept)


def _fits(settings: QualitySettings, index: Index, stores: Mapping[Path, LabelStore]) -> dict[str, dict[str, Any]]:
    """Training data of codebooks and of the model, as far as their folders record them."""
    found: dict[str, dict[str, Any]] = {}
    for folder, store in stores.items():
        if {"validation_share", "split_seed"} <= set(store.codebook_fitted):
            hours = store.codebook_fitted.get("hours_by_source")
            found[f"the codebook of {folder}"] = store.codebook_fitted | {"sources": None if hours is None else [*hours]}
    known = (read_about(Path(settings.encoder)) if settings.encoder else None) or {}
    if "trained_on" in known:
        found[f"the model {settings.encoder}"] = known["trained_on"]
        if not records_all(known["trained_on"]) or _lacks_beginning(known):
            log.warning(
                f"{settings.encoder} was initialised from a model without a record of training data: it may have seen any speaker"
            )
    elif index.fingerprint in known.get("fingerprints", {}).values() and settings.held_out is None:
        raise ValueError(
            f"a model is judged on speakers not seen in training, but {settings.encoder} was trained on {index.path}: export the run "
            "again, which records its split; or set held_out= and split_seed= to the run's data.validation_share and split_seed, without "
            "fit; or set allow_overlap=true"
        )
    return found


def _is_of_older_run(settings: QualitySettings, index: Index) -> bool:
    """True if `held_out` repeats the share of a run on this shard set whose export does not record its split: it was not settled."""
    known = (read_about(Path(settings.encoder)) if settings.encoder else None) or {}
    return "trained_on" not in known and index.fingerprint in known.get("fingerprints", {}).values()


def _lacks_beginning(about: Mapping[str, Any]) -> bool:
    """True for an export of before `before` was noted."""
    return "init_from" in about and "before" not in about["trained_on"]


def records_all(fit: Mapping[str, Any] | None) -> bool:
    """True if a `trained_on` names the training data of every model that this one was initialised from."""
    while fit is not None and "before" in fit:
        fit = fit["before"]
    return fit is not None


def fitted_set(settings: QualitySettings, index: Index, rows: np.ndarray, judged: Judged) -> ProbeSet:
    """Speech of other speakers to fit codebooks on: of the shard set `fit`, or of the rows that are not judged.

    Raises:
        ValueError: If a speaker would be on both sides.
    """
    phones = judged.utterances.inventory
    if settings.held_out == 0:  # never beside `fit`
        log.warning("codebooks are fitted on the speakers that they are judged on (held_out=0): no evidence about other speakers")
        return speech_set(Path(settings.shards), np.array(judged.rows), settings.fit_seconds, phones)
    other = Index.open(settings.fit or settings.shards)
    candidates = np.arange(len(other))
    if other.fingerprint == index.fingerprint:
        candidates = np.setdiff1d(candidates, rows)
    fit = speech_set(other.path, candidates, settings.fit_seconds, phones)
    if not settings.allow_overlap:
        check_disjoint_speakers(fit=fit, judged=judged.utterances)
    return fit
