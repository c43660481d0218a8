"""What a model costs: its parameters and the floating-point operations of a micro-batch, counted from the config alone.

A multiply-add is two operations. Counted are matrix products and convolutions, forward and backward (a gradient for the input and one
for the weights, so twice the forward; the first convolution has no input to give a gradient to). Not counted: normalisations, GELU,
softmax, dropout, mixing, the optimiser, and the scores that fused attention kernels compute again in their backward.
"""

from dataclasses import dataclass
from typing import Literal

from openwavlm.audio.frames import num_frames
from openwavlm.audio.spectra import FFT_SAMPLES, NUM_BANDS
from openwavlm.model.config import WavLMConfig

Recompute = Literal["none", "extractor", "all"]
RECOMPUTE = ("none", "extractor", "all")


@dataclass(frozen=True, kw_only=True)
class HeadShape:
    """The prediction head's sizes.

    Attributes:
        final_dim: Width of projection and label embeddings.
        embeddings: Label embeddings of all label sets, those of special rows included.
        projections: Label sets, each of which has a projection of its own.
    """

    final_dim: int
    embeddings: int
    projections: int = 1


@dataclass(frozen=True, kw_only=True)
class MicroBatchShape:
    """The sizes of a micro-batch.

    Attributes:
        rows: Waveforms.
        samples: Of each row, padding included.
        predicted_frames: Frames whose labels are predicted with a gradient: the masked ones of all rows.
    """

    rows: int
    samples: int
    predicted_frames: int

    @property
    def frames(self) -> int:
        """Model frames of a row."""
        return num_frames(self.samples)


@dataclass(frozen=True)
class Flops:
    """Operations of a micro-batch by part of the model.

    Attributes:
        forward: Part → operations.
        backward: Part → operations of both gradients.
        recomputed: Operations of the forward that the backward repeats to save memory.
    """

    forward: dict[str, int]
    backward: dict[str, int]
    recomputed: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.forward.values()) + sum(self.backward.values()) + self.recomputed


def conv_frames(config: WavLMConfig, samples: int) -> list[int]:
    """Output length of each convolution of the extractor."""
    lengths, length = [], samples
    for kernel, stride in zip(config.conv_kernels, config.conv_strides, strict=True):
        length = (length - kernel) // stride + 1
        lengths.append(length)
    return lengths


def conv_norms(config: WavLMConfig) -> list[bool]:
    """Which convolutions are followed by a normalisation."""
    return [config.extractor_norm == "layer" or index == 0 for index in range(len(config.conv_dims))]


def positional_frames(config: WavLMConfig, frames: int) -> int:
    """Output length of the positional convolution, before its surplus frame is cut off."""
    return frames + 1 - config.positional_kernel % 2


def count_parameters(config: WavLMConfig, head: HeadShape) -> dict[str, int]:
    """Parameters of encoder and head by part; their sum is exact (without the linear map of `loss.logmel`, a few thousand).

    Args:
        config: The encoder.
        head: The head.

    Returns:
        Part → parameters.
    """
    dim, ffn, channels = config.dim, config.ffn_dim, config.conv_dims[-1]
    extractor, channels_in = 0, 1
    for kernel, width, normed in zip(config.conv_kernels, config.conv_dims, conv_norms(config), strict=True):
        extractor += kernel * channels_in * width + config.conv_bias * width + 2 * normed * width
        channels_in = width
    if config.front_end == "logmel":
        extractor = (NUM_BANDS + 1) * channels
    attention = 4 * (dim + 1) * dim + 8 * (dim // config.heads + 1) + config.heads
    return {
        "extractor": extractor,
        "projection": 2 * channels + (channels + 1) * dim,
        "mask_embedding": dim,
        "positional": config.positional_kernel * (1 + dim * dim // config.positional_groups) + dim,
        "relative_bias": config.num_buckets * config.heads,
        "attention": config.layers * attention,
        "feed_forward": config.layers * ((dim + 1) * ffn + (ffn + 1) * dim),
        "norms": 2 * dim * (1 + 2 * config.layers),
        "head": (dim + 1) * head.final_dim * head.projections + head.embeddings * head.final_dim,
    }


def count_flops(config: WavLMConfig, head: HeadShape, batch: MicroBatchShape, *, recompute: Recompute = "none") -> Flops:
    """Operations of one micro-batch, forward and backward.

    With `layer_drop_mode: skip` the layers count with their probability to run.

    Args:
        config: The encoder.
        head: The head.
        batch: The micro-batch.
        recompute: Which activations the backward computes again: `none`, those of the `extractor`, or those of extractor and layers.

    Returns:
        Operations by part.

    Raises:
        ValueError: If `recompute` is unknown.
    """
    if recompute not in RECOMPUTE:
        raise ValueError(f"recompute must be one of {', '.join(RECOMPUTE)}, but is {recompute!r}; choose one of them")
    convolutions = _conv_flops(config, batch)
    forward = {"extractor": sum(convolutions), **_encoder_flops(config, head, batch)}
    backward = {part: 2 * count for part, count in forward.items()}
    if config.feature_grad_mult == 0:
        backward["extractor"] = 0
    elif config.front_end == "logmel":
        backward["extractor"] = convolutions[-1]  # the weights' gradient of its linear map
    else:
        backward["extractor"] -= convolutions[0]
    again = {"none": [], "extractor": ["extractor"], "all": ["extractor", "attention", "scores", "feed_forward"]}[recompute]
    if config.feature_grad_mult == 0:
        again = [part for part in again if part != "extractor"]
    recomputed = sum(forward[part] for part in again)
    if "feed_forward" in again and config.pre_norm and not config.dropout:
        recomputed -= forward["feed_forward"] // 2  # torch stops at the last tensor that is needed: nobody reads the last product
    return Flops(forward, backward, recomputed)


def _conv_flops(config: WavLMConfig, batch: MicroBatchShape) -> list[int]:
    if config.front_end == "logmel":
        frames = batch.rows * batch.frames
        return [2 * frames * (FFT_SAMPLES // 2 + 1) * NUM_BANDS, 2 * frames * NUM_BANDS * config.conv_dims[-1]]
    counts, channels_in = [], 1
    for kernel, width, length in zip(config.conv_kernels, config.conv_dims, conv_frames(config, batch.samples), strict=True):
        counts.append(2 * batch.rows * length * kernel * channels_in * width)
        channels_in = width
    return counts


def _encoder_flops(config: WavLMConfig, head: HeadShape, batch: MicroBatchShape) -> dict[str, int]:
    dim, frames = config.dim, batch.frames
    positions = batch.rows * frames
    run = config.layers * (1 - config.layer_drop) if config.layer_drop_mode == "skip" else config.layers
    positional = batch.rows * positional_frames(config, frames) * config.positional_kernel * dim * dim
    return {
        "projection": 2 * positions * config.conv_dims[-1] * dim,
        "positional": 2 * positional // config.positional_groups,
        "attention": round(
            run * positions * (8 * dim * dim + 4 * dim)
        ),  # query, key, value, output; the gate's two outputs a head
        "scores": round(run * 4 * positions * frames * dim),  # query · key and weights · value
        "feed_forward": round(run * 4 * positions * dim * config.ffn_dim),
        "head": 2 * batch.predicted_frames * head.final_dim * (dim * head.projections + head.embeddings),
    }
