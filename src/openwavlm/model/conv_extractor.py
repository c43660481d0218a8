"""Convolutional feature extractor: waveform to one vector every 20 ms (WavLM §III-A; wav2vec 2.0 §2)."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openwavlm.model.norms import Float32GroupNorm, Float32LayerNorm


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Returns `x` unchanged; its gradient is multiplied by `factor`."""
    return x if factor == 1 else _ScaleGradient.apply(x, factor)


class ConvLayer(nn.Module):
    """Convolution, normalisation (or none), GELU."""

    def __init__(
        self, channels_in: int, channels: int, kernel: int, stride: int, *, norm: Literal["group", "layer", "none"], bias: bool
    ):
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels, kernel, stride=stride, bias=bias)
        self.norm: nn.Module | None = None
        if norm == "group":
            self.norm = Float32GroupNorm(channels, channels)
        elif norm == "layer":
            self.norm = Float32LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, channels_in, frames_in) to (batch, channels, frames)."""
        x = self.conv(x)
        if isinstance(self.norm, Float32LayerNorm):
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.norm is not None:
            x = self.norm(x)
        return F.gelu(x)


class ConvExtractor(nn.Module):
    """Stack of convolutions.

    Args:
        norm: `"group"`: one GroupNorm with a group a channel, on layer 0 alone. `"layer"`: a LayerNorm over channels on every layer.
    """

    def __init__(
        self,
        dims: Sequence[int],
        kernels: Sequence[int],
        strides: Sequence[int],
        *,
        norm: Literal["group", "layer"],
        bias: bool = False,
    ):
        super().__init__()
        self.layers = nn.ModuleList()
        channels_in = 1
        for index, (channels, kernel, stride) in enumerate(zip(dims, kernels, strides, strict=True)):
            layer_norm: Literal["group", "layer", "none"] = norm if norm == "layer" or index == 0 else "none"
            self.layers.append(ConvLayer(channels_in, channels, kernel, stride, norm=layer_norm, bias=bias))
            channels_in = channels

    def forward(self, waveforms: Tensor) -> Tensor:
        """Maps (batch, samples) to (batch, channels, frames)."""
        x = waveforms.unsqueeze(1)
        for layer in self.layers:
            x = layer(x)
        return x
