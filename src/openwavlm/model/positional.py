"""Convolutional positional embedding (wav2vec 2.0 §2), beside WavLM's relative position bias."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm


class PositionalConv(nn.Module):
    """Grouped convolution over time, weight-normalised for each tap of its kernel, then GELU.

    Args:
        kernel: Taps; an even kernel gives one frame too many, which is cut off at the end.
    """

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups), dim=2)
        self.surplus = 1 - kernel % 2

    @property
    def gain(self) -> nn.Parameter:
        """Norm of each tap, (1, 1, kernel)."""
        return self.conv.parametrizations.weight.original0

    @property
    def direction(self) -> nn.Parameter:
        """Un-normalised weight, (dim, dim / groups, kernel)."""
        return self.conv.parametrizations.weight.original1

    @torch.no_grad()
    def initialise(self) -> None:
        """Weight ~ N(0, 4 / (kernel · dim)), bias 0 (fairseq's `make_conv_pos`)."""
        dim, kernel = self.conv.out_channels, self.conv.kernel_size[0]
        drawn = torch.empty(self.direction.shape, device="cpu").normal_(0, math.sqrt(4 / (kernel * dim)))
        self.direction.copy_(drawn)
        self.gain.copy_(drawn.norm(dim=(0, 1), keepdim=True))
        self.conv.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (batch, frames, dim) to (batch, frames, dim)."""
        y = self.conv(x.transpose(1, 2))
        return F.gelu(y[..., : y.shape[-1] - self.surplus]).transpose(1, 2)
