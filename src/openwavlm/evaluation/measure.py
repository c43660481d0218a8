"""One measurement for every kind of features: fitted on training speakers, chosen on dev speakers, then the test part read once."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.frames import FRAME_RATE_HZ
from openwavlm.evaluation.conditions import CONDITIONS, Change, change_of, conditions_in_turn
from openwavlm.evaluation.features import Features, Piece, Thinning, stream
from openwavlm.evaluation.intervals import group_places
from openwavlm.evaluation.measured import Measured
from openwavlm.evaluation.ridge import PENALTIES, RidgeFamily, RidgeStatistics
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.evaluation.speakers import SpeakerMeans
from openwavlm.evaluation.units import LayerCodebooks, Progress, fit_units
from openwavlm.labels.quality import joint_histogram

# To be raised when a figure of unchanged features changes: cached baselines are then measured again.
VERSION = 3
_KEPT_BYTES = 1 << 29


@dataclass(frozen=True, kw_only=True)
class ProbeSettings:
    """Settings of a probe; part of the key of every cached baseline.

    Attributes:
        clusters: Units of the codebooks.
        codebook_seeds: Seeds of the codebooks.
        codebook_frames: Training frames that a codebook is fitted on, thinned evenly.
        degraded_seconds: Test audio that is judged in its degraded versions too, in turn from all speakers.
        penalties: Regularisations to choose from.
        seed: Seed of the noise and of the untrained encoder.
    """

    clusters: int = 100
    codebook_seeds: tuple[int, ...] = (0, 1, 2)
    codebook_frames: int = 20_000
    degraded_seconds: float = 300.0
    penalties: tuple[float, ...] = PENALTIES
    seed: int = 0


def cache_name(
    extract: Features,
    sets: Sequence[ProbeSet],
    settings: ProbeSettings,
    units_layer: int | None = None,
    judged_layers: Sequence[int] = (),
) -> str:
    """File name of a cached measurement: a hash over features, settings, sets and this module's version."""
    assert extract.settings is not None
    content = {
        "version": VERSION,
        "features": extract.settings,
        "sets": [probe_set.fingerprint for probe_set in sets],
        "settings": asdict(settings),
        "units_layer": units_layer,
        "judged_layers": sorted(judged_layers),
    }
    digest = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=12).hexdigest()
    return f"{extract.settings['name']}-{digest}.npz"


def measure(
    extract: Features,
    train: ProbeSet,
    dev: ProbeSet,
    test: ProbeSet,
    settings: ProbeSettings,
    *,
    units_layer: int | None = None,
    judged_layers: Sequence[int] = (),
    cache: Path | None = None,
    progress: Progress | None = None,
) -> Measured:
    """Measures phones, units and speakers of all layers.

    Memory: dim² float64 a layer, one batch of features, and at most 512 MB of frames for the codebooks; beyond that a layer is read again.

    Args:
        units_layer: Layer of the units; None = the one with the best phone accuracy on dev.
        judged_layers: Layers judged, besides the chosen one and that of the units, in degraded conditions and with a probe fitted on
            multi-condition speech.
        cache: Folder that keeps the figures of features that have `settings`.
        progress: Called with a description and the seconds of audio done since the last call.

    Raises:
        ValueError: If the training or dev set has no frame with a phone, or the cached file is damaged.
    """
    path = None
    if cache is not None and extract.settings is not None:
        path = cache / cache_name(extract, (train, dev, test), settings, units_layer, judged_layers)
    if path is not None and path.is_file():
        return Measured.load(path)
    run = _Measurement(extract, settings, len(train.inventory), progress)
    kept = run.fit(train)
    dev_accuracy, penalty, speaker_dev = run.choose(dev)
    chosen = int(dev_accuracy.argmax())
    layer = chosen if units_layer is None else units_layer
    run.fit_codebooks(train, kept, layer)
    del kept
    wanted = sorted({chosen, *judged_layers})
    penalty_multi = run.fit_multi(train, dev, wanted)
    shorter = test.spread_over_speakers(settings.degraded_seconds)
    judged = [run.judge(test, shorter, condition, wanted) for condition in CONDITIONS]
    frames, correct, correct_multi, units, speakers = zip(*judged, strict=True)
    measured = Measured(
        dev_accuracy=dev_accuracy,
        penalty=penalty,
        chosen=np.array(chosen),
        frames=np.stack(frames),
        correct=np.stack(correct),
        correct_multi=np.stack(correct_multi),
        penalty_multi=penalty_multi,
        units=np.stack(units),
        units_layer=np.array(layer),
        speaker_dev=speaker_dev,
        speaker_test=speakers[0],
        audio_seconds=np.array(run.audio_seconds),
    )
    if path is not None:
        measured.save(path)
    return measured


def development_accuracy(extract: Features, train: ProbeSet, dev: ProbeSet) -> np.ndarray:
    """Phone accuracy on dev frames by layer, at the best penalty of each: float64 (layers,).

    Raises:
        ValueError: If the training or dev set has no frame with a phone.
    """
    run = _Measurement(extract, ProbeSettings(codebook_frames=1), len(train.inventory), progress=None)
    run.fit(train)
    return run.choose(dev)[0]


class _Measurement:
    """Steps of `measure`, with shared classifiers and codebooks."""

    def __init__(self, extract: Features, settings: ProbeSettings, num_phones: int, progress: Progress | None) -> None:
        self._extract, self._settings, self._num_phones, self._progress = extract, settings, num_phones, progress
        self._layers = range(len(extract.dims))
        self.audio_seconds = 0.0
        self._ridge: list[RidgeFamily] = []
        self._multi: dict[int, RidgeFamily] = {}
        self._books = LayerCodebooks(torch.zeros(()), torch.ones(()), ())
        self._units_layer = 0

    def _stream(
        self, probe_set: ProbeSet, what: str, layers: Sequence[int], change: Change | Sequence[Change | None] | None = None
    ) -> Iterable[Piece]:
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
        thinning = Thinning(train.frames, self._settings.codebook_frames)
        fits = thinning.keep * sum(dims) * 4 <= _KEPT_BYTES
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
        speakers = [SpeakerMeans() for _ in self._layers]
        for piece in self._stream(dev, "dev", self._layers):
            known = piece.phones >= 0
            frames += int(known.sum())
            _add_speaker(speakers, dev, piece)
            for layer, features in enumerate(piece.features):
                correct[layer] += self._ridge[layer].correct(features[known], piece.phones[known]).sum(dim=1)
        if frames == 0:
            raise ValueError("layers are chosen on dev frames with a phone, but there is none: check the dev alignment")
        best = correct.argmax(dim=1).tolist()
        self._ridge = [family.only(penalty) for family, penalty in zip(self._ridge, best, strict=True)]
        accuracy = correct.amax(dim=1).cpu().numpy() / frames
        return accuracy, np.array([self._settings.penalties[penalty] for penalty in best]), _speaker_accuracies(speakers)

    def fit_multi(self, train: ProbeSet, dev: ProbeSet, layers: Sequence[int]) -> np.ndarray:
        """Fits ridge probes of `layers` on multi-condition speech; returns the best penalty of each layer on such dev speech."""
        settings = self._settings

        def pieces(probe_set: ProbeSet, what: str) -> Iterable[Piece]:
            speakers = [utterance.speaker for utterance in probe_set.utterances]
            return self._stream(probe_set, what, layers, conditions_in_turn(speakers, settings.seed))

        statistics = [RidgeStatistics(self._extract.dims[layer], self._num_phones, self._extract.device) for layer in layers]
        for piece in pieces(train, "multi-condition training"):
            for part, features in zip(statistics, piece.features, strict=True):
                part.add(features, piece.phones)
        families = [part.solve(settings.penalties) for part in statistics]
        correct = torch.zeros(len(layers), len(settings.penalties), dtype=torch.int64, device=self._extract.device)
        for piece in pieces(dev, "multi-condition dev"):
            known = piece.phones >= 0
            for place, features in enumerate(piece.features):
                correct[place] += families[place].correct(features[known], piece.phones[known]).sum(dim=1)
        best = correct.argmax(dim=1).tolist()
        self._multi = {layer: family.only(place) for layer, family, place in zip(layers, families, best, strict=True)}
        penalty = np.full(len(self._layers), np.nan)
        penalty[list(layers)] = [settings.penalties[place] for place in best]
        return penalty

    def fit_codebooks(self, train: ProbeSet, kept: list[Tensor], layer: int) -> None:
        """Fits one codebook a seed on the layer, on standardised features where `standardise` is set."""
        if kept:
            frames = kept[layer]
        else:
            thinning = Thinning(train.frames, self._settings.codebook_frames)
            again = self._stream(train, "training again", [layer])
            frames = torch.cat([piece.features[0].cpu()[thinning.next(len(piece.phones))] for piece in again])
        self._units_layer = layer
        shift, scale = torch.zeros(()), torch.ones(())
        if self._extract.standardise:
            shift, scale = self._ridge[layer].mean.cpu(), self._ridge[layer].scale.cpu()
        frames = (frames - shift) * scale
        books = tuple(fit_units(frames, self._settings.clusters, seed) for seed in self._settings.codebook_seeds)
        self._books = LayerCodebooks(shift, scale, books)

    def judge(
        self, test: ProbeSet, shorter: ProbeSet, condition: str, wanted: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Frames, correct frames of both kinds of probes, units and speaker accuracies.

        Clean: of all of `test` and every layer; else of `shorter` and the `wanted` layers.
        """
        clean = condition == "clean"
        probe_set = test if clean else shorter
        place_of = {id(utterance): place for place, utterance in enumerate(test.utterances)}
        layers = list(self._layers) if clean else sorted({*wanted, self._units_layer})
        rows = group_places(test.speakers)
        frames = np.zeros(len(test), dtype=np.int64)
        correct = np.full((len(self._layers), len(test)), -1, dtype=np.int64)
        multi = correct.copy()
        correct[layers], multi[list(self._multi)] = 0, 0
        sizes = {"num_phones": self._num_phones, "num_classes": self._settings.clusters}
        units = np.zeros((len(self._settings.codebook_seeds), max(rows.values()) + 1, *sizes.values()), dtype=np.int32)
        speakers = [SpeakerMeans() for _ in layers] if clean else []
        for piece in self._stream(probe_set, condition, layers, change_of(condition, self._settings.seed)):
            place = place_of[id(probe_set.utterances[piece.utterance])]
            known = piece.phones >= 0
            frames[place] += int(known.sum())
            for layer, features in zip(layers, piece.features, strict=True):
                correct[layer, place] += int(self._ridge[layer].correct(features[known], piece.phones[known]).sum())
                if layer in self._multi:
                    multi[layer, place] += int(self._multi[layer].correct(features[known], piece.phones[known]).sum())
            of_books = self._books.units(piece.features[layers.index(self._units_layer)])
            row = rows[probe_set.utterances[piece.utterance].speaker]
            units[:, row] += np.stack([joint_histogram(piece.phones.cpu().numpy(), of, **sizes) for of in of_books])
            if clean:
                _add_speaker(speakers, test, piece)
        return frames, correct, multi, units, _speaker_accuracies(speakers)


def _add_speaker(speakers: Sequence[SpeakerMeans], probe_set: ProbeSet, piece: Piece) -> None:
    for means, features in zip(speakers, piece.features, strict=True):
        means.add(probe_set.utterances[piece.utterance].speaker, piece.utterance, features.cpu().numpy())


def _speaker_accuracies(speakers: Sequence[SpeakerMeans]) -> np.ndarray:
    found = [means.accuracy() for means in speakers]
    return np.array([np.nan if accuracy is None else accuracy[0] for accuracy in found])
