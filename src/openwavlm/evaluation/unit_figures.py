"""Figures of units: information about phones and speakers, usage, run lengths, with intervals over speakers (DESIGN §8)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import nan
from typing import Any

import numpy as np

from openwavlm.evaluation.intervals import Interval, group_places, interval, jackknife
from openwavlm.evaluation.speakers import SpeakerMeans
from openwavlm.labels.quality import joint_histogram, perplexity, phone_quality, shuffled_joint, used_clusters


class UnitTally:
    """Counts of one labelling on utterances of `speakers`; `num_phones` is 0 without alignments."""

    def __init__(self, num_phones: int, clusters: int, speakers: Sequence[str]) -> None:
        self._group = group_places(speakers)
        self._speaker = {name: place for place, name in enumerate(sorted(speakers))}
        self.joint = np.zeros((max(self._group.values(), default=-1) + 1, num_phones, clusters), dtype=np.int64)
        self.by_speaker = np.zeros((len(self._speaker), clusters), dtype=np.int64)
        self.run_lengths = np.zeros(1, dtype=np.int64)
        self._means = SpeakerMeans()

    def add(self, speaker: str, units: np.ndarray, phones: np.ndarray, utterance: int) -> None:
        """Counts units and phones, integers (frames,) with −1 where there is none, of an utterance or a part of a long one.

        All parts have the same number `utterance`, so that the speaker probe is judged on other utterances than it is fitted on.
        """
        num_phones, clusters = self.joint.shape[1:]
        units = np.asarray(units, dtype=np.int64)
        self.joint[self._group[speaker]] += joint_histogram(phones, units, num_phones=num_phones, num_classes=clusters)
        known = units[units >= 0]
        self.by_speaker[self._speaker[speaker]] += np.bincount(known, minlength=clusters)
        lengths = np.bincount(run_lengths(known))
        self.run_lengths = np.pad(self.run_lengths, (0, max(0, len(lengths) - len(self.run_lengths))))
        self.run_lengths[: len(lengths)] += lengths
        if len(known):
            self._means.add(speaker, utterance, np.eye(clusters, dtype=np.float32)[known])

    @cached_property
    def speaker_accuracy(self) -> tuple[float, int] | None:
        """`speakers.speaker_accuracy` of the units' frequencies in stretches of 2 s; computed at the first access."""
        return self._means.accuracy()


def run_lengths(units: np.ndarray) -> np.ndarray:
    """Length of each run of equal neighbours in frames; int64 (runs,)."""
    return np.diff(np.flatnonzero(np.diff(units, prepend=-1, append=-1)))


@dataclass(frozen=True)
class UnitFigures:
    """Figures of units on held-out speakers, means over codebook seeds; those that compare with phones are NaN without phones.

    Attributes:
        frames: Frames with a phone and a unit; where the inventory is empty, with a unit.
        clusters: Units K that the codebook has.
        phones: Phones that occur.
        phone_purity, cluster_purity, pnmi_raw, pnmi_shuffled: As in `labels.quality.PhoneQuality`.
        pnmi: `pnmi_raw` less `pnmi_shuffled`: the figure to compare.
        pnmi_low, pnmi_high: Its 95 % interval over speakers and seeds.
        spread: Standard deviation of `pnmi` over codebook seeds; 0 for one codebook.
        seeds: `pnmi` of each codebook.
        used: Units that occur, as a share of K.
        perplexity: Evenly used units with the same entropy.
        run_frames, run_median: Mean and median frames of a run of one unit.
        speaker_information: Mutual information of speaker and unit over the speakers' entropy, that of shuffled units subtracted.
        speaker_accuracy: Accuracy of the speaker probe on the units' frequencies in 2-s stretches; None with too few speakers.
        speakers_probed: Number of speakers of that probe.
        pseudo: Pseudo-values of PNMI, float64 (seeds, clusters of speakers): see `pnmi_pseudo_values`.
    """

    frames: int
    clusters: int
    phones: int
    speakers: int
    phone_purity: float
    cluster_purity: float
    pnmi_raw: float
    pnmi_shuffled: float
    pnmi: float
    pnmi_low: float
    pnmi_high: float
    spread: float
    seeds: tuple[float, ...]
    used: float
    perplexity: float
    run_frames: float
    run_median: float
    speaker_information: float
    speaker_accuracy: float | None
    speakers_probed: int
    pseudo: np.ndarray = field(repr=False, compare=False)

    @classmethod
    def of(cls, tallies: Sequence[UnitTally]) -> "UnitFigures":
        """Figures of one tally a codebook seed.

        Raises:
            ValueError: If no frame has both a phone and a unit.
        """
        each = [_figures(tally) for tally in tallies]
        means: dict[str, Any] = {name: float(np.mean([figures[name] for figures in each])) for name in each[0]}
        probed = [tally.speaker_accuracy for tally in tallies]
        corrected = [figures["pnmi"] for figures in each]
        pseudo = pnmi_pseudo_values(tally.joint for tally in tallies)
        around = interval(pseudo, float(np.mean(corrected)))
        first = tallies[0]
        return cls(
            frames=int((first.joint if first.joint.shape[1] else first.by_speaker).sum()),
            clusters=first.joint.shape[2],
            phones=int((first.joint.sum(axis=(0, 2)) > 0).sum()),
            speakers=len(first.by_speaker),
            pnmi_low=around.low,
            pnmi_high=around.high,
            spread=_spread(corrected),
            seeds=tuple(corrected),
            speaker_accuracy=float(np.mean([found[0] for found in probed if found])) if probed[0] else None,
            speakers_probed=probed[0][1] if probed[0] else 0,
            pseudo=pseudo,
            **means,
        )

    def minus(self, other: "UnitFigures") -> Interval:
        """Difference of `pnmi` with its interval; one codebook stands against every seed of the other.

        Raises:
            ValueError: If the figures are of different clusters of speakers, or of several seeds that differ in number.
        """
        return interval(paired_pseudo_values(self.pseudo, other.pseudo), self.pnmi - other.pnmi)


def paired_pseudo_values(of: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Pseudo-values of a difference, float64 (seeds, clusters); a single seed is repeated for every seed of the other side.

    Raises:
        ValueError: If the numbers of clusters differ, or those of seeds where neither is 1.
    """
    seeds = {len(of), len(against)} - {1}
    if len(seeds) > 1 or of.shape[1] != against.shape[1]:
        raise ValueError(
            "a difference needs the same speakers and equally many seeds on both sides, or one, "
            f"but has (seeds, speakers) {of.shape} and {against.shape}"
        )
    return of - against


def _spread(corrected: Sequence[float]) -> float:
    return float(np.std(corrected, ddof=1)) if len(corrected) > 1 else 0.0


def _figures(tally: UnitTally) -> dict[str, float]:
    quality = phone_quality(tally.joint.sum(axis=0)) if tally.joint.shape[1] else None
    counts = tally.by_speaker.sum(axis=0)
    several = len(tally.by_speaker) > 1
    return {
        "phone_purity": quality.phone_purity if quality else nan,
        "cluster_purity": quality.cluster_purity if quality else nan,
        "pnmi_raw": quality.pnmi if quality else nan,
        "pnmi_shuffled": quality.pnmi_shuffled if quality else nan,
        "pnmi": quality.pnmi_corrected if quality else nan,
        "used": used_clusters(counts) / len(counts),
        "perplexity": perplexity(counts),
        "run_frames": float((np.arange(len(tally.run_lengths)) * tally.run_lengths).sum() / max(tally.run_lengths.sum(), 1)),
        "run_median": float(np.searchsorted(np.cumsum(tally.run_lengths), tally.run_lengths.sum() / 2)),
        "speaker_information": phone_quality(tally.by_speaker).pnmi_corrected if several else 0.0,
    }


def shuffled_tally(tally: UnitTally, seed: int = 0) -> UnitTally:
    """Permutes the units of a tally among all frames; runs and stretches are lost."""
    groups, phones, clusters = tally.joint.shape
    shuffled = UnitTally(phones, clusters, [str(number) for number in range(len(tally.by_speaker))])
    if phones:
        shuffled.joint = shuffled_joint(tally.joint.reshape(groups * phones, clusters), seed).reshape(tally.joint.shape)
    shuffled.by_speaker = shuffled_joint(tally.by_speaker, seed)
    shares = tally.by_speaker.sum(axis=0) / tally.by_speaker.sum()
    # A run of independent draws continues with the probability that two draws are equal.
    continues = float(np.square(shares).sum())
    lengths = continues ** np.arange(200) * (1 - continues) * 1e6
    shuffled.run_lengths = np.concatenate([[0], np.round(lengths)]).astype(np.int64)
    return shuffled


def pnmi_pseudo_values(joints: Iterable[np.ndarray]) -> np.ndarray:
    """Jackknife pseudo-values of PNMI, float64 (seeds, clusters), of a histogram (clusters, phones, units) a seed.

    NaN for clusters without frames. PNMI before the subtraction of shuffled units: that correction hardly differs between clusters.
    """
    return np.stack([jackknife(joint, _pnmi) for joint in joints])


def _pnmi(counts: np.ndarray) -> np.ndarray:
    """PNMI of histograms (number, phones, units); 0 without phone entropy."""
    of_phone, of_unit, of_both = (
        _entropies(part) for part in (counts.sum(axis=2), counts.sum(axis=1), counts.reshape(len(counts), -1))
    )
    return np.divide(of_phone + of_unit - of_both, of_phone, out=np.zeros(len(counts)), where=of_phone > 1e-12)


def _entropies(counts: np.ndarray) -> np.ndarray:
    total = np.maximum(counts.sum(axis=1), 1e-12)
    return np.log(total) - (counts * np.log(np.maximum(counts, 1e-12))).sum(axis=1) / total


def unit_quality(joints: np.ndarray) -> dict[str, Any]:
    """Figures of int64 histograms (seeds, phones, classes): means over codebook seeds of `labels.quality.PhoneQuality`.

    `pnmi` is the corrected one, `seeds` that of each seed, `spread` their standard deviation, `pnmi_raw` PNMI as published.

    Raises:
        ValueError: If a histogram is empty.
    """
    qualities = [phone_quality(joint) for joint in joints]
    mean = {name: float(np.mean([vars(quality)[name] for quality in qualities])) for name in vars(qualities[0])}
    corrected = [quality.pnmi_corrected for quality in qualities]
    return {
        "pnmi": mean["pnmi_corrected"],
        "spread": _spread(corrected),
        "seeds": tuple(corrected),
        "pnmi_raw": mean["pnmi"],
        **{name: mean[name] for name in ("pnmi_shuffled", "phone_purity", "cluster_purity")},
        "frames": qualities[0].frames,
        "classes": mean["classes"],
        "phones": qualities[0].phones,
    }
