"""Mixtures of the utterances of a set: the audio, and the frames in which the first and the second speaker are audible (WavLM §III-B)."""

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
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance

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


class Mixtures(NamedTuple):
    """Mixtures of the utterances of a set; `mixed` has the phones and the name of the first speaker."""

    mixed: ProbeSet
    overlapped: tuple[np.ndarray, ...]  # of each utterance, bool (frames,): the second speaker is audible
    active: tuple[np.ndarray, ...]  # likewise: the first speaker is audible
    partners: tuple[str, ...]  # the second speaker of each utterance

    def pseudo_values(self, **figures: Callable[[np.ndarray], float]) -> dict[str, Any]:
        """Jackknife pseudo-values of figures by speaker: n · all − (n − 1) · all without a speaker, over n speakers.

        A speaker is left out in both roles, as first and as second one, since a mixture is of both.

        Args:
            figures: Each a function of the mixtures that are kept, bool (utterances,); NaN where it does not exist.

        Returns:
            `speakers`, and for each figure its name with the list of its pseudo-values.
        """
        first = np.array([utterance.speaker for utterance in self.mixed.utterances])
        second = np.array(self.partners)
        names = sorted({*first.tolist(), *self.partners})
        found: dict[str, Any] = {"speakers": names}
        for title, figure in figures.items():
            whole, count = figure(np.ones(len(first), dtype=bool)), len(names)
            without = [figure((first != name) & (second != name)) for name in names]
            found[title] = [count * whole - (count - 1) * value for value in without]
        return found


def share_of(numerator: np.ndarray, denominator: np.ndarray) -> Callable[[np.ndarray], float]:
    """Σ numerator / Σ denominator, each (utterances,), as a function of the utterances that are kept."""

    def figure(kept: np.ndarray) -> float:
        frames = denominator[kept].sum()
        return float(numerator[kept].sum() / frames) if frames else float("nan")

    return figure


def audible(signal: Tensor, *, audible_db: float = AUDIBLE_DB) -> Tensor:
    """Marks the frames of a clean utterance (samples,) within `audible_db` of its loudest frame; bool (frames,), False in silence."""
    energies = frame_energies(signal)
    return (energies > 0) & (energies >= energies.max() * 10 ** (-audible_db / 10)) if len(energies) else energies.bool()


def with_level_of(mixed: Tensor, clean: Tensor, record: MixRecord) -> Tensor:
    """Scales each mixture's interval to the mean energy that its first speaker alone has there.

    A mixture at 0 dB is 3 dB louder where the second speaker was added, so that a detector of loudness detects overlaps. An interval
    in which the first speaker is silent is left as it is.

    Args:
        mixed: (batch, samples), as `mixing.mix` returns it.
        clean: (batch, samples), before the mixing.
        record: The mixtures, at most one a row.
    """
    levelled = mixed.clone()
    columns = (record.row, record.start, record.length)
    for row, start, length in zip(*(column.tolist() for column in columns), strict=True):
        part = slice(start, start + length)
        alone, both = clean[row, part].double().square().sum(), mixed[row, part].double().square().sum()
        if alone > 0 and both > 0:
            levelled[row, part] *= float((alone / both).sqrt())
    return levelled


def mix_set(
    probe_set: ProbeSet, *, seed: int, energy_ratio_db: float = 0.0, max_share: float = 0.5, gain_normalised: bool = False
) -> Mixtures:
    """Mixes every utterance with one of another speaker, as in training.

    Args:
        probe_set: Clean utterances of at least two speakers.
        seed: Seed of partners, places and lengths; equal for all models that are compared.
        energy_ratio_db: First over scaled second utterance, mean energies of the whole utterances.
        max_share: Longest overlap as a share of the first utterance.
        gain_normalised: Scales the mixed interval as `with_level_of`; partners, places and lengths stay the same.

    Raises:
        ValueError: If all utterances have one speaker.
    """
    if len(probe_set.speakers) < 2:
        raise ValueError(f"mixtures need a second speaker, but all utterances are of {probe_set.speakers[0]!r}: add a speaker")
    mixing = Mixing(prob=1.0, speech_db=(energy_ratio_db, energy_ratio_db), max_share=max_share)
    utterances, overlapped, active, partners = [], [], [], []
    for number, utterance in enumerate(probe_set.utterances):
        partner = _partner(probe_set, number, seed)
        pair = [utterance.waveform(), partner.waveform()]
        num_samples = np.array([len(waveform) for waveform in pair])
        batch = torch.zeros(2, int(num_samples.max()))
        for row, waveform in enumerate(pair):
            batch[row, : len(waveform)] = torch.from_numpy(waveform.astype(np.float32))
        record = _first_only(draw_mixing(mixing, num_samples, np.ones(2, dtype=bool), seed, source=0, epoch=0, micro=number))
        valid = torch.from_numpy(num_samples)
        mixed = mix(batch, valid, record)
        if gain_normalised:
            mixed = with_level_of(mixed, batch, record)
        utterances.append(replace(utterance, audio=to_int16(mixed[0, : len(pair[0])].numpy())))
        overlapped.append(audible_overlap(batch, valid, record)[0, : utterance.frames].numpy())
        active.append(audible(batch[0, : len(pair[0])]).numpy())
        partners.append(partner.speaker)
    return Mixtures(ProbeSet(tuple(utterances), probe_set.inventory), tuple(overlapped), tuple(active), tuple(partners))


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
