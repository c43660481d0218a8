"""Probes during training: phone accuracy of each layer on development speakers, at regular updates (DESIGN §8).

Every process computes the same figures on both sets: sharded parameters need all processes in every forward, and the sets are minutes.
"""

import logging
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.evaluation.features import EncoderFeatures, spectral_baselines
from openwavlm.evaluation.measure import development_accuracy
from openwavlm.evaluation.settings import LiveProbes
from openwavlm.evaluation.shard_sets import inventory, probe_set, read_phone_times
from openwavlm.evaluation.unseen import check_disjoint_speakers, check_unseen_audio
from openwavlm.model.wavlm import WavLM
from openwavlm.runtime.atomic import write_json
from openwavlm.runtime.sealed import read_sealed
from openwavlm.shards.index import Index

log = logging.getLogger(__name__)

FORWARD_SHARE = 1 / 3  # of a training step on the same audio: no backward


class LiveProbe:
    """Probe of one run.

    Args:
        settings: `every` is not 0.
        trained_on: Each training index with the mask of its training rows, which `dev` must not contain.
        directory: Run directory; the baselines are kept in `probe_baselines.json`.

    Raises:
        ValueError: If the sets share a speaker, have no phones, or `dev` is training audio.
    """

    def __init__(self, settings: LiveProbes, trained_on: list[tuple[Index, np.ndarray]], directory: Path) -> None:
        assert settings.train and settings.dev and settings.alignments
        times = read_phone_times(Path(settings.alignments), fold_stress=settings.fold_stress)
        phones = inventory(times)
        train = probe_set(Path(settings.train), times, phones).spread_over_speakers(settings.train_seconds).readable()
        dev = probe_set(Path(settings.dev), times, phones).spread_over_speakers(settings.dev_seconds).readable()
        check_disjoint_speakers(train=train, dev=dev)
        check_unseen_audio(dev, trained_on)
        self.settings, self._train, self._dev = settings, train, dev
        self._baselines = directory / "probe_baselines.json"

    @property
    def audio_seconds(self) -> float:
        """Audio that one probe passes through the model."""
        return self._train.seconds + self._dev.seconds

    def run(self, model: WavLM) -> list[float]:
        """Phone accuracy on the development speakers' frames, by layer."""
        return development_accuracy(EncoderFeatures(model), self._train, self._dev).tolist()

    def baselines(self, model: WavLM) -> dict[str, float]:
        """Accuracies of the baselines on the same frames; computed once a run, and again, with a warning, if the sets change."""
        about = [self._train.fingerprint, self._dev.fingerprint]
        spectral = spectral_baselines()
        kept: dict[str, Any] = {}
        if self._baselines.is_file():
            try:
                kept = read_baselines(self._baselines)
            except ValueError as error:
                log.warning("the baselines of the probes are measured again: %s", error)
            # An older version measured fewer of them.
            if kept.get("sets") == about and kept["baselines"].keys() >= {f"{name}_context" for name in spectral}:
                return kept["baselines"]
        table = self._baselines.with_name("probes.csv")
        changed = bool(kept.get("changed")) or (kept.get("sets", about) != about and table.is_file())
        if changed:
            log.warning(
                "the probes' sets or alignments have changed: the earlier rows of %s were measured on other speech", table
            )
        found: dict[str, float] = {}
        for name, features in spectral.items():
            one, context = development_accuracy(features, self._train, self._dev)
            found |= {name: float(one), f"{name}_context": float(context)}
        untrained = EncoderFeatures.untrained(model.config, 0, EncoderFeatures(model).device)
        found["untrained"] = float(development_accuracy(untrained, self._train, self._dev).max())
        write_json(
            self._baselines, {"format_version": 1, "sets": about, "baselines": found} | ({"changed": True} if changed else {})
        )
        return found

    def share_of_training(self, update_seconds: float, world_size: int) -> float:
        """Work of the probes over work of training, by seconds of audio."""
        return FORWARD_SHARE * self.audio_seconds * world_size / (self.settings.every * update_seconds)


def read_baselines(path: Path) -> dict[str, Any]:
    """Reads `probe_baselines.json`: `sets` (fingerprints), `baselines` (accuracies by name), `changed` if `probes.csv` has other sets too.

    Raises:
        ValueError: If it is damaged.
    """
    content = read_sealed(path, remedy="delete it, and the next probe measures it again")
    known = content.get("baselines")
    if not isinstance(known, dict) or not all(isinstance(value, int | float) for value in known.values()):
        raise ValueError(f"{path} is damaged (it must hold accuracies by name): delete it, and the next probe measures it again")
    return content
