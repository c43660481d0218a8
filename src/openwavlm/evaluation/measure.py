"""One measurement for every kind of features: fitted on training speakers, chosen on dev speakers, then the test part read once."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.frames import FRAME_RATE_HZ
from openwavlm.evaluation.degrade import add_noise, telephone
from openwavlm.evaluation.features import Change, Features, Piece, stream
from openwavlm.evaluation.measured import CONDITIONS, NOISE_SNR_DB, Measured, ProbeSettings, cache_name
from openwavlm.evaluation.ridge import RidgeFamily, RidgeStatistics
from openwavlm.evaluation.sets import ProbeSet, pcm_of
from openwavlm.evaluation.speakers import frame_means, speaker_accuracy
from openwavlm.evaluation.units import fit_units
from openwavlm.labels.kmeans import Codebook
from openwavlm.labels.quality import joint_histogram

_KEPT_BYTES = 1 << 29

Progress = Callable[[str, float], None]


def measure_cached(
    extract: Features,
    train: ProbeSet,
    dev: ProbeSet,
    test: ProbeSet,
    settings: ProbeSettings,
    *,
    units_layer: int | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Measured:
    """`measure`, or what an earlier call stored in the folder `cache` for the same features, sets and settings."""
    path = cache / cache_name(extract, (train, dev, test), settings, units_layer) if cache is not None else None
    if path is not None and path.is_file():
        return Measured.load(path)
    measured = measure(extract, train, dev, test, settings, units_layer=units_layer, progress=progress)
    if path is not None:
        measured.save(path)
    return measured


def measure(
    extract: Features,
    train: ProbeSet,
    dev: ProbeSet,
    test: ProbeSet,
    settings: ProbeSettings,
    *,
    units_layer: int | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Measures phones, units and speakers of all layers.

    Memory: the sums of the ridge probes (dim² float64 a layer), at most 512 MB of training frames for the codebooks (beyond
    that the chosen layer is extracted a second time), one batch of features.

    Args:
        extract: Which features.
        train: Training speakers, clean.
        dev: Dev speakers.
        test: Test speakers.
        settings: What to do.
        units_layer: Layer of the units; None = the one with the best phone accuracy on dev.
        progress: Called with a description and the seconds of audio that were done since the last call.

    Raises:
        ValueError: If the training or dev set has no frame with a phone.
    """
    run = _Measurement(extract, settings, len(train.inventory), progress)
    kept = run.fit(train)
    dev_accuracy, penalty, speaker_dev = run.choose(dev)
    chosen = int(dev_accuracy.argmax())
    layer = chosen if units_layer is None else units_layer
    run.fit_codebooks(train, kept, layer)
    del kept
    shorter = test.spread_over_speakers(settings.degraded_seconds)
    judged = [run.judge(test, shorter, condition, chosen) for condition in CONDITIONS]
    return Measured(
        dev_accuracy=dev_accuracy,
        penalty=penalty,
        chosen=np.array(chosen),
        frames=np.stack([part.frames for part in judged]),
        correct=np.stack([part.correct for part in judged]),
        units=np.stack([part.units for part in judged]),
        units_layer=np.array(layer),
        speaker_dev=speaker_dev,
        speaker_test=judged[0].speakers,
        audio_seconds=np.array(run.audio_seconds),
    )


def development_accuracy(extract: Features, train: ProbeSet, dev: ProbeSet) -> np.ndarray:
    """Share of dev frames whose phone is right, by layer, at the penalty that is best there: float64 (layers,).

    Raises:
        ValueError: If the training or dev set has no frame with a phone.
    """
    run = _Measurement(extract, ProbeSettings(codebook_frames=1), len(train.inventory), progress=None)
    run.fit(train)
    return run.choose(dev)[0]


@dataclass(frozen=True, eq=False)
class _Judged:
    frames: np.ndarray
    correct: np.ndarray
    units: np.ndarray
    speakers: np.ndarray


class _Measurement:
    """The steps of `measure`, which share classifiers and codebooks."""

    def __init__(self, extract: Features, settings: ProbeSettings, num_phones: int, progress: Progress | None) -> None:
        self._extract, self._settings, self._num_phones, self._progress = extract, settings, num_phones, progress
        self._layers = range(len(extract.dims))
        self.audio_seconds = 0.0
        self._ridge: list[RidgeFamily] = []
        self._codebooks: list[Codebook] = []
        self._shift, self._scale = torch.zeros(()), torch.ones(())
        self._units_layer = 0

    def _stream(self, probe_set: ProbeSet, what: str, layers: Sequence[int], change: Change | None = None) -> Iterable[Piece]:
        for piece in stream(self._extract, probe_set, layers, change=change):
            yield piece
            seconds = len(piece.phones) / FRAME_RATE_HZ
            self.audio_seconds += seconds
            if self._progress:
                self._progress(what, seconds)

    def fit(self, train: ProbeSet) -> list[Tensor]:
        """Fits the ridge probes; returns thinned frames of each layer for the codebooks, or nothing where they are too many."""
        dims = self._extract.dims
        statistics = [RidgeStatistics(dim, self._num_phones, self._extract.device) for dim in dims]
        keep = min(train.frames, self._settings.codebook_frames)
        fits = keep * sum(dims) * 4 <= _KEPT_BYTES
        thinning = _Thinning(train.frames, keep)
        parts: list[list[Tensor]] = [[] for _ in dims]
        for piece in self._stream(train, "training", self._layers):
            stays = thinning.next(len(piece.phones))
            for layer, features in enumerate(piece.features):
                statistics[layer].add(features, piece.phones)
                if fits:
                    parts[layer].append(features.cpu()[stays])
        self._ridge = [part.solve(self._settings.penalties) for part in statistics]
        return [torch.cat(part) for part in parts] if fits else []

    def choose(self, dev: ProbeSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Keeps each layer's best penalty; returns dev accuracy, penalty and speaker accuracy of each layer."""
        correct = torch.zeros(len(self._layers), len(self._settings.penalties), dtype=torch.int64, device=self._extract.device)
        frames = 0
        voices = _Voices(len(self._layers))
        for piece in self._stream(dev, "dev", self._layers):
            known = piece.phones >= 0
            frames += int(known.sum())
            voices.add(dev.utterances[piece.utterance].speaker, piece)
            for layer, features in enumerate(piece.features):
                correct[layer] += self._ridge[layer].correct(features[known], piece.phones[known]).sum(dim=1)
        if frames == 0:
            raise ValueError(
                "layers and penalties are chosen on dev frames with a phone, but there is none: check the dev alignment"
            )
        best = correct.argmax(dim=1).tolist()
        self._ridge = [family.only(penalty) for family, penalty in zip(self._ridge, best, strict=True)]
        accuracy = correct.amax(dim=1).cpu().numpy() / frames
        return accuracy, np.array([self._settings.penalties[penalty] for penalty in best]), voices.accuracies()

    def fit_codebooks(self, train: ProbeSet, kept: list[Tensor], layer: int) -> None:
        """Fits one codebook a seed on the layer, standardised where the features ask for it."""
        if kept:
            frames = kept[layer]
        else:
            thinning = _Thinning(train.frames, self._settings.codebook_frames)
            again = self._stream(train, "training again", [layer])
            frames = torch.cat([piece.features[0].cpu()[thinning.next(len(piece.phones))] for piece in again])
        self._units_layer = layer
        if self._extract.standardise:
            self._shift, self._scale = self._ridge[layer].mean.cpu(), self._ridge[layer].scale.cpu()
        frames = (frames - self._shift) * self._scale
        self._codebooks = [fit_units(frames, self._settings.clusters, seed) for seed in self._settings.codebook_seeds]

    def judge(self, test: ProbeSet, shorter: ProbeSet, condition: str, chosen: int) -> _Judged:
        """Reads the test part: all of it and all layers if clean, else `shorter` and only the layers that figures are of."""
        clean = condition == "clean"
        probe_set = test if clean else shorter
        place_of = {id(utterance): place for place, utterance in enumerate(test.utterances)}
        layers = list(self._layers) if clean else sorted({chosen, self._units_layer})
        frames = np.zeros(len(test), dtype=np.int64)
        correct = np.full((len(self._layers), len(test)), 0 if clean else -1, dtype=np.int64)
        correct[layers] = 0
        units = np.zeros((len(self._codebooks), self._num_phones, self._settings.clusters), dtype=np.int64)
        voices = _Voices(len(layers))
        for piece in self._stream(probe_set, condition, layers, change_of(condition, self._settings.seed)):
            place = place_of[id(probe_set.utterances[piece.utterance])]
            known = piece.phones >= 0
            frames[place] += int(known.sum())
            for layer, features in zip(layers, piece.features, strict=True):
                correct[layer, place] += int(self._ridge[layer].correct(features[known], piece.phones[known]).sum())
            units += self._unit_counts(piece, layers)
            if clean:
                voices.add(test.utterances[place].speaker, piece)
        return _Judged(frames, correct, units, voices.accuracies() if clean else np.zeros(0))

    def _unit_counts(self, piece: Piece, layers: list[int]) -> np.ndarray:
        features = (piece.features[layers.index(self._units_layer)].cpu() - self._shift) * self._scale
        phones = piece.phones.cpu().numpy()
        sizes = {"num_phones": self._num_phones, "num_classes": self._settings.clusters}
        return np.stack([joint_histogram(phones, codebook.assign(features), **sizes) for codebook in self._codebooks])


def change_of(condition: str, seed: int) -> Change | None:
    """What one of `CONDITIONS` does to an utterance; None for `clean`."""
    if condition == "clean":
        return None
    if condition == "telephone":
        return telephone
    return lambda waveform: add_noise(waveform, NOISE_SNR_DB, seed=seed, name=pcm_of(waveform))


class _Thinning:
    """Which frames of a stream of `total` stay so that about `keep` are left, evenly."""

    def __init__(self, total: int, keep: int) -> None:
        self._total, self._keep, self._first = total, min(keep, total), 0

    def next(self, count: int) -> Tensor:
        """The next `count` frames of the stream; bool (count,)."""
        places = np.arange(self._first, self._first + count + 1, dtype=np.int64) * self._keep // self._total
        self._first += count
        return torch.from_numpy(np.diff(places) > 0)


class _Voices:
    """2-s means of each layer, utterance by utterance."""

    def __init__(self, layers: int) -> None:
        self._means: list[dict[tuple[str, int], list[np.ndarray]]] = [{} for _ in range(layers)]

    def add(self, speaker: str, piece: Piece) -> None:
        for means, features in zip(self._means, piece.features, strict=True):
            means.setdefault((speaker, piece.utterance), []).append(frame_means(features.cpu().numpy()))

    def accuracies(self) -> np.ndarray:
        found = [
            speaker_accuracy([np.concatenate(parts) for parts in means.values()], [who for who, _ in means])
            for means in self._means
        ]
        return np.array([np.nan if accuracy is None else accuracy[0] for accuracy in found])
