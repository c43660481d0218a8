"""Waveform to one vector every 20 ms: the convolutional extractor (WavLM §III-A; wav2vec 2.0 §2) and its control, log-mels."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openwavlm.audio.spectra import NUM_BANDS, normalised_log_mel
from openwavlm.model.config import WavLMConfig
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

    def __init__(self, conv: nn.Conv1d, norm: Float32GroupNorm | Float32LayerNorm | None):
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Maps (batch, channels_in, frames_in) to (batch, channels, frames); a group norm takes its statistics over `valid` frames."""
        x = self.conv(x)
        if isinstance(self.norm, Float32LayerNorm):
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        elif self.norm is not None:
            x = self.norm(x, valid)
        return F.gelu(x)


class ConvExtractor(nn.Module):
    """Stack of convolutions: with a LayerNorm over channels on every layer, or with a GroupNorm of one channel per group on the first.

    Attributes:
        ignores_padding: Whether the group norm's statistics leave a row's padding out, so that a padded row equals the row alone. False
            as in both references and in pre-training; fine-tuning sets it.
    """

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.ignores_padding = False
        self.layers = nn.ModuleList()
        channels_in = 1
        for channels, kernel, stride in zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True):
            norm: Float32GroupNorm | Float32LayerNorm | None = None
            if config.extractor_norm == "layer":
                norm = Float32LayerNorm(channels)
            elif not self.layers:
                norm = Float32GroupNorm(channels, channels)
            self.layers.append(ConvLayer(nn.Conv1d(channels_in, channels, kernel, stride, bias=config.conv_bias), norm))
            channels_in = channels

    @torch.no_grad()
    def initialise(self) -> None:
        """Draws the weights by He's rule; biases 0."""
        for layer in self.layers:
            assert isinstance(layer, ConvLayer)
            layer.conv.weight.copy_(nn.init.kaiming_normal_(torch.empty(layer.conv.weight.shape, device="cpu")))
            if layer.conv.bias is not None:
                layer.conv.bias.zero_()

    def forward(self, waveforms: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Maps (batch, samples) to (batch, channels, frames); `num_samples` (batch,) is read only with `ignores_padding`."""
        x, valid = waveforms.unsqueeze(1), num_samples if self.ignores_padding else None
        for layer in self.layers:
            assert isinstance(layer, ConvLayer)
            if valid is not None:
                valid = (valid - layer.conv.kernel_size[0]).div(layer.conv.stride[0], rounding_mode="floor") + 1
            x = layer(x, valid)
        return x


class MelFrontEnd(nn.Module):
    """Front end without learnt filters: normalised log-mels through one linear map, on the same frames as the convolutions."""

    def __init__(self, dim: int):
        super().__init__()
        self.map = nn.Linear(NUM_BANDS, dim)

    def initialise(self) -> None:
        """Draws the linear map."""
        draw_linear(self.map)

    def forward(self, waveforms: Tensor, num_samples: Tensor | None = None) -> Tensor:
        """Maps (batch, samples) to (batch, dim, frames); bands are normalised over the row's valid frames (batch,) `num_samples`."""
        return self.map(normalised_log_mel(waveforms, num_samples).to(self.map.weight.dtype)).transpose(1, 2)


@torch.no_grad()
def draw_linear(module: nn.Linear) -> None:
    """U(±1/√inputs) for weights and biases, on the CPU."""
    bound = module.in_features**-0.5
    for parameter in (module.weight, module.bias):
        parameter.copy_(torch.empty(parameter.shape, device="cpu").uniform_(-bound, bound))
