"""Linear detectors of a mark in each frame (a second speaker, the first speaker), judged by average precision."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from openwavlm.evaluation.features import Features, stream
from openwavlm.evaluation.mix_sets import Mixtures, frame_energies
from openwavlm.evaluation.ridge import RidgeFamily, RidgeStatistics
from openwavlm.evaluation.sets import ProbeSet

Marks = Sequence[np.ndarray]  # of each utterance, int64 (frames,): 1 marked, 0 not, −1 left out


class Scored(NamedTuple):
    """Scores of the frames that are not left out, in the order of `stream`.

    Attributes:
        scores: float (layers, penalties, frames), higher = more likely marked.
        truth: bool (frames,).
        level: float64 (frames,), energy of the frame over the mean energy of its utterance: the score of a detector of loudness.
        utterance: int64 (frames,), number of the utterance in its set.
    """

    scores: np.ndarray
    truth: np.ndarray
    level: np.ndarray
    utterance: np.ndarray


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Average precision of scores (frames,), higher = more likely positive, against the truth, bool (frames,).

    Raises:
        ValueError: If no frame is positive.
    """
    from sklearn.metrics import average_precision_score

    if not truth.any():
        raise ValueError("average precision needs at least one positive frame, but there is none: mix more utterances")
    return float(average_precision_score(truth, scores))


def fit_detectors(extract: Features, mixed: ProbeSet, marks: Sequence[Marks]) -> list[list[RidgeFamily]]:
    """Fits a detector a layer for each of several marks, in one pass over the audio."""
    sums = [[RidgeStatistics(dim, 2, extract.device) for dim in extract.dims] for _ in marks]
    # Utterances stay whole, as their marks are.
    for piece in stream(extract, mixed, range(len(extract.dims)), max_seconds=np.inf):
        for of_mark, of_sums in zip(marks, sums, strict=True):
            truth = torch.from_numpy(of_mark[piece.utterance]).to(extract.device)
            for layer, features in enumerate(piece.features):
                of_sums[layer].add(features, truth)
    return [[one.solve() for one in of_sums] for of_sums in sums]


def levels(waveform: np.ndarray) -> np.ndarray:
    """Energy of each frame over the mean of all frames; float64 (frames,) of int16 (samples,), 0 in silence."""
    energies = frame_energies(torch.from_numpy(waveform)).double().numpy()
    mean = energies.mean() if len(energies) else 0.0
    return energies / mean if mean > 0 else energies


def score(extract: Features, mixed: ProbeSet, detectors: Sequence[list[RidgeFamily]], marks: Sequence[Marks]) -> list[Scored]:
    """Scores the frames of a set by each mark's detectors, in one pass over the audio."""
    found: list[list[tuple[np.ndarray, ...]]] = [[] for _ in marks]
    for piece in stream(extract, mixed, range(len(extract.dims)), max_seconds=np.inf):
        level = levels(mixed.utterances[piece.utterance].waveform())
        for of_mark, families, parts in zip(marks, detectors, found, strict=True):
            truth = of_mark[piece.utterance]
            kept = np.flatnonzero(truth >= 0)
            chosen = torch.from_numpy(kept).to(extract.device)
            scores = [f.scores(x[chosen])[..., 1].cpu().numpy() for f, x in zip(families, piece.features, strict=True)]
            parts.append((np.stack(scores), truth[kept] > 0, level[kept], np.full(len(kept), piece.utterance)))
    return [Scored(*(np.concatenate(columns, axis=-1) for columns in zip(*parts, strict=True))) for parts in found]


def chosen_figures(on_dev: np.ndarray, on_test: Callable[[int, int], float]) -> dict[str, Any]:
    """Figures of each layer at its best penalty on dev, and of the best layer there; `on_dev` is (layers, penalties)."""
    layers = [on_test(layer, int(penalty)) for layer, penalty in enumerate(on_dev.argmax(axis=1))]
    best = int(on_dev.max(axis=1).argmax())
    return {"layers": layers, "layers_dev": on_dev.max(axis=1), "chosen_layer": best, "chosen": layers[best]}


def detection_figures(dev: Scored, test: Scored, mixtures: Mixtures) -> dict[str, Any]:
    """Average precisions of one mark.

    Args:
        dev: Scores that choose layer and penalty.
        test: Scores that are judged.
        mixtures: Those of `test`.

    Returns:
        `layers`, `layers_dev`, `chosen_layer`, `chosen`; `share` of marked frames, the precision of chance; `level`, the precision of
        the frame's energy alone; `pseudo_values` of `chosen`, as `Mixtures.pseudo_values`, for the difference of two models.
    """
    on_dev = np.array([[average_precision(scores, dev.truth) for scores in layer] for layer in dev.scores])
    figures = chosen_figures(on_dev, lambda layer, penalty: average_precision(test.scores[layer, penalty], test.truth))
    layer = figures["chosen_layer"]
    scores = test.scores[layer, int(on_dev[layer].argmax())]
    return figures | {
        "share": float(test.truth.mean()),
        "level": average_precision(test.level, test.truth),
        "pseudo_values": mixtures.pseudo_values(chosen=lambda kept: _precision(scores, test, kept)),
    }


def _precision(scores: np.ndarray, test: Scored, kept: np.ndarray) -> float:
    """Average precision in the utterances of `kept`, bool (utterances,); NaN without a marked frame."""
    frames = kept[test.utterance]
    return average_precision(scores[frames], test.truth[frames]) if test.truth[frames].any() else float("nan")
