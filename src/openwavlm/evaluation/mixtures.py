"""Probes on mixtures: an audible second speaker, the first one under it, and the first one's phones (WavLM §III-B)."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from openwavlm.evaluation.detection import chosen_figures, detection_figures, fit_detectors, score
from openwavlm.evaluation.features import Features, stream
from openwavlm.evaluation.intervals import by_cluster, interval, ratio_interval
from openwavlm.evaluation.mix_sets import Mixtures, mix_set, share_of
from openwavlm.evaluation.probe import summary
from openwavlm.evaluation.ridge import PENALTIES, RidgeFamily, RidgeStatistics
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.evaluation.unseen import check_disjoint_speakers

# Of the figures: results of another version are not reused by a study.
VERSION = 3


def probe_mixtures(
    extract: Features,
    train: ProbeSet,
    dev: ProbeSet,
    test: ProbeSet,
    *,
    seed: int = 0,
    energy_ratio_db: float = 0.0,
    max_share: float = 0.5,
) -> dict[str, Any]:
    """Measures all layers on mixtures of held-out speakers.

    Mixtures are louder where the second speaker was added, so loudness alone detects an overlap. Detection is therefore measured at
    the first speaker's own level too (`mix_sets.with_level_of`), and beside the precision of the frame's energy alone.

    Args:
        train: Training speakers: their clean speech fits the phones, their mixtures the detectors.
        dev: Dev speakers, whose mixtures choose layers and penalties.
        seed: Seed of the mixtures; keep it when models are compared.
        energy_ratio_db: First over second speaker, as `mix_set`.
        max_share: Longest overlap, as `mix_set`.

    Returns:
        For JSON, figures as in `detection.detection_figures`: `overlap`, detection of an audible second speaker, and
        `overlap_normalised`, the same with the gain normalised; `target`, with the gain normalised: is the first speaker audible in
        this frame, of the frames where the second one is. `phones`: accuracy of the first speaker's phones in frames with an audible
        second one (`layers`, `layers_dev`, `chosen_layer`, `chosen`, `interval` over speakers in both roles, `pseudo_values` for paired
        differences); `clean_phones`: the same probes on all frames of unmixed speech, with `by_speaker` sums.

    Raises:
        ValueError: If the sets share a speaker, or one has a single speaker.
    """
    check_disjoint_speakers(train=train, dev=dev, test=test)
    phones = _fit_phones(extract, train)
    raw, levelled = (
        [
            mix_set(part, seed=seed, energy_ratio_db=energy_ratio_db, max_share=max_share, gain_normalised=normalised)
            for part in (train, dev, test)
        ]
        for normalised in (False, True)
    )
    (overlap,) = _detected(extract, raw, [_overlap_marks])
    overlap_normalised, target = _detected(extract, levelled, [_overlap_marks, _target_marks])
    mixed_dev, mixed_test = (_read(extract, phones, part.mixed, part.overlapped) for part in raw[1:])
    clean_dev, clean_test = (_read(extract, phones, part, None) for part in (dev, test))
    return summary(
        {
            "overlap": overlap,
            "overlap_normalised": overlap_normalised,
            "target": target,
            "phones": _mixed_phone_figures(mixed_dev, mixed_test, raw[2]),
            "clean_phones": _phone_figures(clean_dev, clean_test, test),
        }
    )


def _overlap_marks(mixtures: Mixtures) -> list[np.ndarray]:
    return [overlapped.astype(np.int64) for overlapped in mixtures.overlapped]


def _target_marks(mixtures: Mixtures) -> list[np.ndarray]:
    """1 where both speakers are audible, 0 where only the second one is, −1 elsewhere."""
    pairs = zip(mixtures.overlapped, mixtures.active, strict=True)
    return [np.where(overlapped, active.astype(np.int64), -1) for overlapped, active in pairs]


def _detected(
    extract: Features, parts: Sequence[Mixtures], marks: Sequence[Callable[[Mixtures], list[np.ndarray]]]
) -> list[dict[str, Any]]:
    """Figures of each mark's detectors, fitted on the first of `parts`, chosen on the second and judged on the third."""
    train, dev, test = parts
    detectors = fit_detectors(extract, train.mixed, [of(train) for of in marks])
    on_dev, on_test = (score(extract, part.mixed, detectors, [of(part) for of in marks]) for part in (dev, test))
    return [detection_figures(one, other, test) for one, other in zip(on_dev, on_test, strict=True)]


def _fit_phones(extract: Features, train: ProbeSet) -> list[RidgeFamily]:
    """Probe of each layer, fitted on clean speech."""
    phones = [RidgeStatistics(dim, len(train.inventory), extract.device) for dim in extract.dims]
    # Whole utterances, as they are judged: normalised features depend on what lies around a frame.
    for piece in stream(extract, train, range(len(extract.dims)), max_seconds=np.inf):
        for layer, features in enumerate(piece.features):
            phones[layer].add(features, piece.phones)
    return [part.solve() for part in phones]


class _Read(NamedTuple):
    """Correct frames, int64 (layers, penalties, utterances), and frames of each utterance, int64 (utterances,)."""

    correct: np.ndarray
    frames: np.ndarray


def _read(extract: Features, phones: list[RidgeFamily], judged: ProbeSet, where: Sequence[np.ndarray] | None) -> _Read:
    """Counts the correct frames among those of `where`, bool (frames,) of each utterance; None takes all with a phone."""
    correct = np.zeros((len(phones), len(PENALTIES), len(judged)), dtype=np.int64)
    frames = np.zeros(len(judged), dtype=np.int64)
    for piece in stream(extract, judged, range(len(phones)), max_seconds=np.inf):
        known = piece.phones >= 0
        if where is not None:
            known &= torch.from_numpy(where[piece.utterance]).to(known.device)
        frames[piece.utterance] = int(known.sum())
        for layer, features in enumerate(piece.features):
            right = phones[layer].correct(features[known], piece.phones[known])
            correct[layer, :, piece.utterance] = right.sum(dim=1).cpu().numpy()
    return _Read(correct, frames)


def _chosen_phones(dev: _Read, test: _Read) -> tuple[dict[str, Any], np.ndarray]:
    """Figures of the layers, and correct frames of the chosen one, int64 (utterances,)."""
    on_dev = dev.correct.sum(axis=2) / max(int(dev.frames.sum()), 1)
    figures = chosen_figures(on_dev, lambda layer, penalty: float(test.correct[layer, penalty].sum() / test.frames.sum()))
    layer = figures["chosen_layer"]
    return figures, test.correct[layer, int(on_dev[layer].argmax())]


def _mixed_phone_figures(dev: _Read, test: _Read, mixtures: Mixtures) -> dict[str, Any]:
    figures, correct = _chosen_phones(dev, test)
    pseudo = mixtures.pseudo_values(chosen=share_of(correct, test.frames))
    found = interval(np.array([pseudo["chosen"]]), figures["chosen"])
    return figures | {"interval": [found.low, found.high], "pseudo_values": pseudo}


def _phone_figures(dev: _Read, test: _Read, test_set: ProbeSet) -> dict[str, Any]:
    figures, correct = _chosen_phones(dev, test)
    speakers = [utterance.speaker for utterance in test_set.utterances]
    ours, frames = by_cluster(correct, speakers), by_cluster(test.frames, speakers)
    found = ratio_interval(ours, frames)
    return figures | {
        "interval": [found.low, found.high],
        "by_speaker": {"speakers": list(test_set.speakers), "correct": ours, "frames": frames},
    }
