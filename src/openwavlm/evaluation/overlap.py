"""Two voices at once: in which frames a second one is audible, and whether features tell (DESIGN §8)."""

import numpy as np
import torch
from torch import Tensor

from openwavlm.audio.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES, num_frames
from openwavlm.batches.batch import MixRecord

AUDIBLE_DB = 30.0


def frame_energies(signal: Tensor) -> Tensor:
    """Mean square of each model frame's 400 samples; float32 (frames,) of a signal (samples,)."""
    if num_frames(len(signal)) == 0:
        return torch.zeros(0)
    return signal.float().unfold(0, RECEPTIVE_FIELD_SAMPLES, HOP_SAMPLES).square().mean(dim=1)


def audible_overlap(
    waveforms: Tensor,
    num_samples: Tensor,
    record: MixRecord,
    noise: Tensor | None = None,
    noise_num_samples: Tensor | None = None,
    *,
    audible_db: float = AUDIBLE_DB,
) -> Tensor:
    """Frames in which the second voice of a mixture is audible.

    That is: the second voice's own part in the frame, silence outside the mixture's interval, has an energy within `audible_db` of
    the loudest frame of the whole second utterance. Both before scaling, so the energy ratio of the mixture plays no part.

    Args:
        waveforms: (batch, samples), clean, any scale.
        num_samples: int64 (batch,), valid samples.
        record: The mixtures.
        noise: (noises, samples), where the record refers to noise.
        noise_num_samples: int64 (noises,).
        audible_db: How far below its loudest frame a voice is still heard.

    Returns:
        bool (batch, frames), False in rows without a mixture and in padding.
    """
    batch, samples = waveforms.shape
    audible = torch.zeros(batch, num_frames(samples), dtype=torch.bool)
    columns = (record.row, record.partner, record.start, record.partner_start, record.length)
    for row, partner, start, partner_start, length in zip(*(column.tolist() for column in columns), strict=True):
        if partner < batch:
            second = waveforms[partner, : int(num_samples[partner])].float().cpu()
        else:
            assert noise is not None and noise_num_samples is not None
            second = noise[partner - batch, : int(noise_num_samples[partner - batch])].float().cpu()
        placed = torch.zeros(samples)
        placed[start : start + length] = second[partner_start : partner_start + length]
        loudest = frame_energies(second).max() if num_frames(len(second)) else second.square().mean()
        if loudest > 0:
            heard = frame_energies(placed) >= loudest * 10 ** (-audible_db / 10)
            heard[num_frames(int(num_samples[row])) :] = False
            audible[row] |= heard
    return audible


def average_precision(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the precision-recall steps, frames of one score taken together; the share of positives for scores that know nothing.

    Args:
        scores: (frames,), higher = more likely positive.
        truth: bool (frames,).

    Raises:
        ValueError: If no frame is positive.
    """
    positive = np.asarray(truth, dtype=bool)
    if not positive.any():
        raise ValueError("average precision needs at least one positive frame, but there is none: mix more utterances")
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranked, hits = np.asarray(scores)[order], np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))
