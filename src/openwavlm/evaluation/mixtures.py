"""Probes on mixtures: detection of an audible second speaker, and phones of the first one under it (WavLM §III-B)."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, num_frames
from openwavlm.batches.batch import MixRecord
from openwavlm.batches.mixing import draw_mixing, mix
from openwavlm.batches.settings import Mixing
from openwavlm.evaluation.conditions import to_int16
from openwavlm.evaluation.features import Features, stream
from openwavlm.evaluation.intervals import by_cluster, ratio_interval
from openwavlm.evaluation.probe import summary
from openwavlm.evaluation.ridge import PENALTIES, RidgeFamily, RidgeStatistics
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance
from openwavlm.evaluation.unseen import check_disjoint_speakers

AUDIBLE_DB = 30.0


def frame_energies(signal: Tensor) -> Tensor:
    """Mean square of each model frame's 400 samples; float32 (frames,) of a signal (samples,)."""
    if num_frames(len(signal)) == 0:
        return torch.zeros(0)
    return signal.float().unfold(0, RECEPTIVE_FIELD_SAMPLES, HOP_SAMPLES).square().mean(dim=1)


def audible_overlap(waveforms: Tensor, num_samples: Tensor, record: MixRecord, *, audible_db: float = AUDIBLE_DB) -> Tensor:
    """Marks the frames in which the second speaker of a mixture is audible.

    Audible: the second utterance's own part in the frame, silence outside the mixture's interval, has an energy within `audible_db`
    of the loudest frame of the whole second utterance. Both before scaling, so the mixture's energy ratio has no effect.

    Args:
        waveforms: (batch, samples), clean, any scale.
        num_samples: int64 (batch,), valid samples.
        record: Mixtures of utterances of the batch, without noise.

    Returns:
        bool (batch, frames), False in rows without a mixture and in padding.
    """
    batch, samples = waveforms.shape
    audible = torch.zeros(batch, num_frames(samples), dtype=torch.bool)
    columns = (record.row, record.partner, record.start, record.partner_start, record.length)
    for row, partner, start, partner_start, length in zip(*(column.tolist() for column in columns), strict=True):
        second = waveforms[partner, : int(num_samples[partner])].float()
        placed = torch.zeros(samples)
        placed[start : start + length] = second[partner_start : partner_start + length]
        loudest = frame_energies(second).max() if num_frames(len(second)) else second.square().mean()
        if loudest > 0:
            loud = frame_energies(placed) >= loudest * 10 ** (-audible_db / 10)
            loud[num_frames(int(num_samples[row])) :] = False
            audible[row] |= loud
    return audible


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Average precision of scores (frames,), higher = more likely positive, against the truth, bool (frames,).

    Raises:
        ValueError: If no frame is positive.
    """
    from sklearn.metrics import average_precision_score

    if not truth.any():
        raise ValueError("average precision needs at least one positive frame, but there is none: mix more utterances")
    return float(average_precision_score(truth, scores))


class Mixtures(NamedTuple):
    """Mixtures, with the phones and names of the first speaker, and the frames with an audible second speaker, bool (frames,) each."""

    mixed: ProbeSet
    overlapped: tuple[np.ndarray, ...]


def mix_set(probe_set: ProbeSet, *, seed: int, energy_ratio_db: float = 0.0, max_share: float = 0.5) -> Mixtures:
    """Mixes every utterance with one of another speaker, as in training.

    Args:
        probe_set: Clean utterances of at least two speakers.
        seed: Seed of partners, places and lengths; equal for all models that are compared.
        energy_ratio_db: First over scaled second utterance, mean energies of the whole utterances.
        max_share: Longest overlap as a share of the first utterance.

    Raises:
        ValueError: If all utterances have one speaker.
    """
    if len(probe_set.speakers) < 2:
        raise ValueError(f"mixtures need a second speaker, but all utterances are of {probe_set.speakers[0]!r}: add a speaker")
    mixing = Mixing(prob=1.0, speech_db=(energy_ratio_db, energy_ratio_db), max_share=max_share)
    utterances, overlapped = [], []
    for number, utterance in enumerate(probe_set.utterances):
        partner = _partner(probe_set, number, seed)
        pair = [utterance.waveform(), partner.waveform()]
        num_samples = np.array([len(waveform) for waveform in pair])
        batch = torch.zeros(2, int(num_samples.max()))
        for row, waveform in enumerate(pair):
            batch[row, : len(waveform)] = torch.from_numpy(waveform.astype(np.float32))
        record = _first_only(draw_mixing(mixing, num_samples, np.ones(2, dtype=bool), seed, source=0, epoch=0, micro=number))
        valid = torch.from_numpy(num_samples)
        mixed = mix(batch, valid, record)[0, : len(pair[0])].numpy()
        utterances.append(replace(utterance, audio=to_int16(mixed)))
        overlapped.append(audible_overlap(batch, valid, record)[0, : utterance.frames].numpy())
    return Mixtures(ProbeSet(tuple(utterances), probe_set.inventory), tuple(overlapped))


def _partner(probe_set: ProbeSet, number: int, seed: int) -> ProbeUtterance:
    """An utterance of another speaker, drawn by (seed, number)."""
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, number], dtype=np.uint64)))
    speaker = probe_set.utterances[number].speaker
    others = [utterance for utterance in probe_set.utterances if utterance.speaker != speaker]
    return others[int(generator.integers(len(others)))]


def _first_only(record: MixRecord) -> MixRecord:
    """Mixture of row 0 alone."""
    first = record.row == 0
    columns = {field.name: getattr(record, field.name)[first] for field in fields(record) if field.name != "max_length"}
    return MixRecord(**columns, max_length=int(columns["length"].max()) if first.any() else 0)


def probe_mixtures(
    extract: Features, train: ProbeSet, dev: ProbeSet, test: ProbeSet, *, seed: int = 0, energy_ratio_db: float = 0.0
) -> dict[str, Any]:
    """Measures all layers on mixtures of held-out speakers.

    Args:
        train: Training speakers: their clean speech fits the phones, their mixtures the overlap.
        dev: Dev speakers, whose mixtures choose layers and penalties.
        seed: Seed of the mixtures; keep it when models are compared.

    Returns:
        For JSON. `overlap`: average precision of "a second speaker is audible in this frame" (`layers`, `layers_dev`, `chosen_layer`,
        `chosen`, `share` of positive frames). `phones`: accuracy of the first speaker's phones in those frames (the same names,
        `interval` over speakers, `by_speaker` sums for paired differences).

    Raises:
        ValueError: If the sets share a speaker, or one has a single speaker.
    """
    check_disjoint_speakers(train=train, dev=dev, test=test)
    layers, device = range(len(extract.dims)), extract.device
    phones = [RidgeStatistics(dim, len(train.inventory), device) for dim in extract.dims]
    overlap = [RidgeStatistics(dim, 2, device) for dim in extract.dims]
    for piece in stream(extract, train, layers):
        for layer, features in enumerate(piece.features):
            phones[layer].add(features, piece.phones)
    # Utterances stay whole, as the overlap marks are.
    mixed = mix_set(train, seed=seed, energy_ratio_db=energy_ratio_db)
    for piece in stream(extract, mixed.mixed, layers, max_seconds=np.inf):
        overlapped = torch.from_numpy(mixed.overlapped[piece.utterance].astype(np.int64)).to(device)
        for layer, features in enumerate(piece.features):
            overlap[layer].add(features, overlapped)
    probes = [part.solve() for part in phones], [part.solve() for part in overlap]
    on_dev, on_test = (_read(extract, *probes, mix_set(part, seed=seed, energy_ratio_db=energy_ratio_db)) for part in (dev, test))
    return summary({"overlap": _overlap_figures(on_dev, on_test), "phones": _phone_figures(on_dev, on_test, test)})


class _Read(NamedTuple):
    """Overlap: scores (layers, penalties, frames), truth (frames,). Phones: correct (layers, penalties, utterances), frames of each."""

    scores: np.ndarray
    truth: np.ndarray
    correct: np.ndarray
    frames: np.ndarray


def _read(extract: Features, phones: list[RidgeFamily], overlap: list[RidgeFamily], mixtures: Mixtures) -> _Read:
    layers = len(phones)
    scores, truth = [], []
    correct = np.zeros((layers, len(PENALTIES), len(mixtures.mixed)), dtype=np.int64)
    frames = np.zeros(len(mixtures.mixed), dtype=np.int64)
    for piece in stream(extract, mixtures.mixed, range(layers), max_seconds=np.inf):
        overlapped = mixtures.overlapped[piece.utterance]
        truth.append(overlapped)
        scores.append(np.stack([f.scores(x)[..., 1].cpu().numpy() for f, x in zip(overlap, piece.features, strict=True)]))
        known = torch.from_numpy(overlapped).to(piece.phones.device) & (piece.phones >= 0)
        frames[piece.utterance] = int(known.sum())
        for layer, features in enumerate(piece.features):
            right = phones[layer].correct(features[known], piece.phones[known])
            correct[layer, :, piece.utterance] = right.sum(dim=1).cpu().numpy()
    return _Read(np.concatenate(scores, axis=2), np.concatenate(truth), correct, frames)


def _chosen(on_dev: np.ndarray, on_test: Callable[[int, int], float]) -> dict[str, Any]:
    """Figures of each layer at its best penalty on dev, and of the best layer there; `on_dev` is (layers, penalties)."""
    layers = [on_test(layer, int(penalty)) for layer, penalty in enumerate(on_dev.argmax(axis=1))]
    best = int(on_dev.max(axis=1).argmax())
    return {"layers": layers, "layers_dev": on_dev.max(axis=1), "chosen_layer": best, "chosen": layers[best]}


def _overlap_figures(dev: _Read, test: _Read) -> dict[str, Any]:
    on_dev = np.array([[average_precision(scores, dev.truth) for scores in layer] for layer in dev.scores])
    figures = _chosen(on_dev, lambda layer, penalty: average_precision(test.scores[layer, penalty], test.truth))
    return figures | {"share": float(test.truth.mean())}


def _phone_figures(dev: _Read, test: _Read, test_set: ProbeSet) -> dict[str, Any]:
    on_dev = dev.correct.sum(axis=2) / max(int(dev.frames.sum()), 1)
    figures = _chosen(on_dev, lambda layer, penalty: float(test.correct[layer, penalty].sum() / test.frames.sum()))
    layer = figures["chosen_layer"]
    speakers = [utterance.speaker for utterance in test_set.utterances]
    ours = by_cluster(test.correct[layer, int(on_dev[layer].argmax())], speakers)
    frames = by_cluster(test.frames, speakers)
    interval = ratio_interval(ours, frames)
    return figures | {
        "interval": [interval.low, interval.high],
        "by_speaker": {"speakers": list(test_set.speakers), "correct": ours, "frames": frames},
    }
