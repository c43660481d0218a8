"""The forward pass of one micro-batch (mixing, normalisation, keyed dropout, choice of frames) and its loss."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from openwavlm.audio.frames import num_frames
from openwavlm.audio.spectra import normalised_log_mel
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.mixing import mix
from openwavlm.batches.settings import Mixing
from openwavlm.model.pretraining import PretrainingOutput, WavLMForPretraining
from openwavlm.model.wavlm import normalise
from openwavlm.runtime.randomness import words
from openwavlm.training.settings import Loss


def prepare_waveforms(batch: PretrainBatch, mixing: Mixing | None, *, normalised: bool) -> Tensor:
    """int16 → float in [−1, 1] → mixtures from an untouched copy → normalised over valid samples if the model wants it."""
    waveforms = batch.waveforms.to(torch.float32) / 32768
    again = mixing is not None and mixing.mode == "unispeech"  # UniSpeech normalises before mixing, and mixed rows once more
    if normalised and again:
        waveforms = normalise(waveforms, batch.num_samples)
    if mixing is not None and len(batch.mix):
        noise = batch.noise.to(torch.float32) / 32768
        waveforms = mix(
            waveforms, batch.num_samples, batch.mix, noise, batch.noise_num_samples, mode=mixing.mode, normalise=normalised
        )
    return normalise(waveforms, batch.num_samples) if normalised and not again else waveforms


def seed_dropout(device: torch.device, seed: int, batch: Any) -> None:
    """Seeds the device's default generator for one micro-batch, so that dropout depends on the plan alone."""
    key = int(words(seed, "dropout", 1, **batch.id.place)[0] >> 1)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(key)
    else:
        torch.default_generator.manual_seed(key)


def forward_micro_batch(
    model: WavLMForPretraining,
    batch: PretrainBatch,
    waveforms: Tensor,
    *,
    with_unmasked: bool,
    learn_unmasked: bool = False,
    with_marginal: bool = False,
    with_frames: bool = False,
) -> PretrainingOutput:
    """Runs the model on one micro-batch; labels are those of the clean primary utterance."""
    sets = [of_set.flatten().to(torch.int64) for of_set in batch.labels]
    unmasked = batch.unmasked_index if with_unmasked else None
    return model(
        waveforms,
        batch.num_samples,
        mask=batch.mask,
        masked_index=batch.masked_index,
        masked_labels=[labels.index_select(0, batch.masked_index) for labels in sets],
        layer_keep=batch.layer_keep,
        unmasked_index=unmasked,
        unmasked_labels=[labels.index_select(0, unmasked) for labels in sets] if unmasked is not None else (),
        learn_unmasked=learn_unmasked,
        with_marginal=with_marginal,
        with_frames=with_frames,
    )


def over_sets(output: PretrainingOutput, name: str, weights: Sequence[float]) -> Tensor:
    """Weighted sum of a figure over the label sets."""
    figures = [getattr(of_set, name) for of_set in output.sets]
    if len(figures) == 1:
        return figures[0]
    return torch.stack([weight * figure for weight, figure in zip(weights, figures, strict=True)]).sum()


def logmel_error(logmel_map: nn.Linear, features: Tensor, waveforms: Tensor, num_samples: Tensor) -> Tensor:
    """Mean squared error of the linear map over valid frames and bands; computed at a weight of 0 too, for a gradient on every rank."""
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
    """Loss of a micro-batch, summed over its `num_masked` masked frames.

    `logmel` is the `logmel_error`, None without the map; `warm` the factor of the warm-up losses (`Loss.warm`).
    """
    total = over_sets(output, "cross_entropy_sum", target_weights)
    total = total + loss.feature_penalty * output.feature_penalty * num_masked
    if loss.unmasked * warm > 0 and output.sets[0].unmasked_cross_entropy_sum is not None:
        total = total + loss.unmasked * warm * over_sets(output, "unmasked_cross_entropy_sum", target_weights)
    if logmel is not None:
        total = total + loss.logmel * warm * logmel * num_masked
    return total
