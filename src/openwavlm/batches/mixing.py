"""Utterance mixing: a second utterance or noise over a part of each mixed utterance; labels stay those of the clean audio
(WavLM §III-B, Algorithm 1). NumPy draws in the loader's worker, torch applies on the device, with a `MixRecord` between them.

`mode="paper"` is Algorithm 1 with three holes closed: the partner is another row, taken from the clean batch, and energies
and positions keep to the valid samples. `mode="unispeech"` is what Microsoft's UniSpeech code does instead, for ablation:

- the partner may be the row itself, and a row mixed earlier in the batch is taken in its mixed state;
- lengths and positions cover the padded width, and a length may be 0;
- powers are means over the padded width, and a mixed row is normalised again if the model normalises its input.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from openwavlm.batches.batch import MixRecord
from openwavlm.batches.settings import Mixing, Mode
from openwavlm.runtime.randomness import integers, uniform, words


def check_noise_bank(mixing: Mixing, bank_size: int) -> None:
    """Refuses settings with noise where there is no noise bank (`bank_size` 0)."""
    if mixing.prob > 0 and mixing.noise_prob > 0 and bank_size < 1:
        raise ValueError(
            f"mixing with noise needs a noise bank, but mixing.noise_prob is {mixing.noise_prob} and there is no noise clip; "
            "name one, as in data.noise=shards/NOISE, or use mixing=speech"
        )


def _mixed_rows(mixing: Mixing, batch: int, seed: int, **place: int) -> tuple[np.ndarray, np.ndarray]:
    """Marks the planned rows that are mixed with speech, and those mixed with noise; two bool (batch,)."""
    mixed = uniform(words(seed, "mix.trigger", batch, **place)) < mixing.prob
    noisy = uniform(words(seed, "mix.kind", batch, **place)) < mixing.noise_prob
    return mixed & ~noisy, mixed & noisy


def draw_noise_clips(mixing: Mixing, batch: int, bank_size: int, seed: int, **place: int) -> np.ndarray:
    """Chooses the noise clips of one micro-batch, which have to be read before `draw_mixing` can place them; keyed as `draw_mixing`.

    Returns:
        int64 (batch,), the row's clip in the noise bank, or −1 for a row that takes none.

    Raises:
        ValueError: If the settings use noise and there is none.
    """
    check_noise_bank(mixing, bank_size)
    _, noisy = _mixed_rows(mixing, batch, seed, **place)
    clip = integers(words(seed, "mix.clip", batch, **place), bank_size)
    return np.where(noisy, clip, -1)


def draw_mixing(
    mixing: Mixing,
    num_samples: np.ndarray,
    readable: np.ndarray,
    seed: int,
    *,
    noise_num_samples: np.ndarray | None = None,
    **place: int,
) -> MixRecord:
    """Draws the mixtures of one micro-batch, at most one per row, keyed by `seed` and `place` as `randomness.words`.

    Every purpose has one word per planned row, used or not: an unreadable row takes part in no mixture and does not change other
    rows' draws. A row without a possible partner (alone in its batch, partner not readable) stays as it is.

    Args:
        num_samples: Integers (batch,), valid samples of the planned rows, the longest one filling the width.
        readable: bool (batch,).
        noise_num_samples: Integers (noises,), samples of the clips that `draw_noise_clips` chose, in the order of their rows;
            0 for an unreadable clip.

    Raises:
        ValueError: If the number of noise clips is not the number that was chosen.
    """
    planned = np.asarray(num_samples).astype(np.int64)
    clips = np.asarray([] if noise_num_samples is None else noise_num_samples).astype(np.int64)
    batch = len(planned)
    speech, noisy = _mixed_rows(mixing, batch, seed, **place)
    if len(clips) != np.count_nonzero(noisy):
        raise ValueError(
            f"noise_num_samples needs a number for each clip that draw_noise_clips chose, {np.count_nonzero(noisy)}, but has {len(clips)}"
        )

    def raw(purpose: str) -> np.ndarray:
        return words(seed, f"mix.{purpose}", batch, **place)

    row, paper = np.arange(batch), mixing.mode == "paper"
    extent, shortest = (planned, 1) if paper else (np.full(batch, planned.max(initial=0)), 0)
    if paper:  # another row; only a row alone in its batch is its own partner
        partner = (row + 1 + integers(raw("partner"), max(batch - 1, 1))) % max(batch, 1)
        speech &= partner != row
    else:
        partner = integers(raw("partner"), batch)
    partner = np.where(noisy, batch + np.cumsum(noisy) - 1, partner)
    partner_extent = np.concatenate([np.where(readable, extent, 0), clips])[partner]

    longest = np.floor(extent * mixing.max_share).astype(np.int64)
    length = shortest + integers(raw("length"), np.maximum(longest - shortest + 1, 1))
    length = np.minimum(length, partner_extent)
    start = integers(raw("start"), extent - length + 1)
    partner_start = integers(raw("partner_start"), partner_extent - length + 1)
    lowest, highest = np.where(noisy[:, None], mixing.noise_db, mixing.speech_db).T
    ratio = (lowest + (highest - lowest) * uniform(raw("ratio"))).astype(np.float32)

    kept = np.flatnonzero((speech | noisy) & readable & (partner_extent > 0) & (longest >= shortest))
    columns = {"row": row, "partner": partner, "start": start, "partner_start": partner_start, "length": length}
    return MixRecord(
        **{name: torch.from_numpy(column[kept]) for name, column in columns.items()},
        energy_ratio_db=torch.from_numpy(ratio[kept]),
        max_length=int(length[kept].max(initial=0)),
    )


def mix(
    waveforms: Tensor,
    num_samples: Tensor,
    record: MixRecord,
    noise: Tensor | None = None,
    noise_num_samples: Tensor | None = None,
    *,
    mode: Mode = "paper",
    normalise: bool = False,
) -> Tensor:
    """Adds every mixture's scaled secondary to its primary, all secondaries taken from the clean input (WavLM §III-B).

    The secondary is scaled to the drawn ratio of mean energies, each over all valid samples of its utterance or clip. Where
    one of the two is silent nothing is added. Runs on any device without synchronisation, except in the mode `unispeech`.

    Args:
        waveforms: Float (batch, samples); left as it is.
        num_samples: int64 (batch,), valid samples.
        record: The mixtures, drawn in the same mode.
        noise: Float (noises, samples), on the waveforms' scale.
        noise_num_samples: int64 (noises,), valid samples of the noise.
        mode: That of the settings.
        normalise: Normalises mixed rows again in the mode `unispeech`, for models with normalised input.

    Returns:
        Float (batch, samples); `waveforms` itself if there is nothing to mix.
    """
    if mode == "unispeech":
        return _mix_as_unispeech(waveforms, record, noise, noise_num_samples, normalise=normalise)
    if record.max_length == 0:
        return waveforms
    batch, samples = waveforms.shape
    offset = torch.arange(record.max_length, device=waveforms.device)
    row = record.partner.clamp(max=batch - 1)
    secondary, energy = _excerpts(waveforms, row, record.partner_start, offset), _energy(waveforms, num_samples, row)
    if noise is not None and noise_num_samples is not None and noise.numel() > 0:
        clip = (record.partner - batch).clamp(min=0)
        noisy = record.partner >= batch
        secondary = torch.where(noisy[:, None], _excerpts(noise, clip, record.partner_start, offset), secondary)
        energy = torch.where(noisy, _energy(noise, noise_num_samples, clip), energy)

    wanted = _energy(waveforms, num_samples, record.row) * 10 ** (-record.energy_ratio_db / 10)
    scale = torch.where(energy > 0, (wanted / energy).sqrt(), 0.0).to(waveforms.dtype)
    added = torch.where(offset < record.length[:, None], scale[:, None] * secondary, 0.0)
    # Past the overlap's end a zero is added, at the row's last sample if the row has ended too.
    place = record.row[:, None] * samples + (record.start[:, None] + offset).clamp(max=samples - 1)
    return waveforms.flatten().index_add(0, place.flatten(), added.flatten()).view(batch, samples)


def _excerpts(signals: Tensor, row: Tensor, start: Tensor, offset: Tensor) -> Tensor:
    """`signals[row, start + offset]`, positions past the end clamped; (mixtures, offsets)."""
    width = signals.shape[1]
    return signals.take(row[:, None] * width + (start[:, None] + offset).clamp(max=width - 1))


def _energy(signals: Tensor, num_samples: Tensor, row: Tensor) -> Tensor:
    """Mean square over the valid samples of the chosen rows; float32 (mixtures,)."""
    valid_samples = num_samples[row]
    valid = torch.arange(signals.shape[1], device=signals.device) < valid_samples[:, None]
    return torch.where(valid, signals[row].float(), 0.0).square().sum(1) / valid_samples.clamp(min=1)


def _mix_as_unispeech(
    waveforms: Tensor, record: MixRecord, noise: Tensor | None, noise_num_samples: Tensor | None, *, normalise: bool
) -> Tensor:
    """Mixes row after row as Microsoft's UniSpeech code does (top of this file); slow, for ablations."""
    mixed = waveforms.clone()
    batch = len(mixed)
    columns = (record.row, record.partner, record.start, record.partner_start, record.length, record.energy_ratio_db)
    for row, partner, start, partner_start, length, ratio_db in zip(*(column.tolist() for column in columns), strict=True):
        if partner < batch:
            secondary = mixed[partner]
        else:
            assert noise is not None and noise_num_samples is not None
            secondary = noise[partner - batch, : noise_num_samples[partner - batch]]
        power, secondary_power = mixed[row].square().mean(), secondary.square().mean()
        if secondary_power > 0:
            scale = (power / (secondary_power * 10 ** (ratio_db / 10))).sqrt()
            mixed[row, start : start + length] += scale * secondary[partner_start : partner_start + length]
        if normalise:
            mixed[row] = F.layer_norm(mixed[row], mixed.shape[1:])
    return mixed
