"""The loss of one micro-batch: masked prediction, feature penalty and the two warm-up losses."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from openwavlm.audio.frames import num_frames
from openwavlm.audio.spectra import normalised_log_mel
from openwavlm.model.pretraining import PretrainingOutput
from openwavlm.training.settings import Loss


def over_sets(output: PretrainingOutput, name: str, weights: Sequence[float]) -> Tensor:
    """Weighted sum of a figure over the label sets."""
    figures = [getattr(of_set, name) for of_set in output.sets]
    if len(figures) == 1:
        return figures[0]
    return torch.stack([weight * figure for weight, figure in zip(weights, figures, strict=True)]).sum()


def logmel_error(logmel_map: nn.Linear, features: Tensor, waveforms: Tensor, num_samples: Tensor) -> Tensor:
    """Mean squared error of the linear map over valid frames and bands.

    It is computed at a weight of 0 too, so that the map's parameters have a gradient on every rank.
    """
    target = normalised_log_mel(waveforms, num_samples)
    frames = num_frames(num_samples)
    valid = torch.arange(target.shape[1], device=target.device) < frames[:, None]
    error = (logmel_map(features.transpose(1, 2)).float() - target).square().mean(-1)
    return (error * valid).sum() / frames.sum().clamp(min=1)


def micro_batch_loss(
    output: PretrainingOutput,
    logmel: Tensor | None,
    loss: Loss,
    *,
    target_weights: Sequence[float],
    num_masked: int,
    warm: float,
) -> Tensor:
    """Sum over the masked frames of a micro-batch.

    Args:
        output: The model's.
        logmel: `logmel_error`; None without the map.
        loss: Weights.
        target_weights: Part of each label set.
        num_masked: Masked frames, by which the means are multiplied.
        warm: Factor of the warm-up losses (`Loss.warm`).
    """
    total = over_sets(output, "cross_entropy_sum", target_weights)
    total = total + loss.feature_penalty * output.feature_penalty * num_masked
    if loss.unmasked * warm > 0 and output.sets[0].unmasked_cross_entropy_sum is not None:
        total = total + loss.unmasked * warm * over_sets(output, "unmasked_cross_entropy_sum", target_weights)
    if logmel is not None:
        total = total + loss.logmel * warm * logmel * num_masked
    return total
