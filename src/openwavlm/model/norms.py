"""Normalisations in float32 at every precision of the model; the output has the input's type."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Float32LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension (eps 1e-5) with statistics and affine map in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x` (..., dim)."""
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


class Float32GroupNorm(nn.GroupNorm):
    """GroupNorm with statistics and affine map in float32; with one group per channel, an instance norm over time."""

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalises `x` (batch, channels, frames).

        With `valid`, int64 (batch,), the statistics are those of the first frames of each row, whatever its padding holds; it needs one
        channel per group.
        """
        assert self.weight is not None and self.bias is not None
        if valid is None:
            return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)
        assert self.num_groups == self.num_channels
        inside = (torch.arange(x.shape[-1], device=x.device) < valid[:, None])[:, None]
        count = valid.clamp(min=1)[:, None, None]
        centred = x.float() - torch.where(inside, x, 0).float().sum(-1, keepdim=True) / count
        variance = torch.where(inside, centred, 0).square().sum(-1, keepdim=True) / count
        weight, bias = self.weight.float()[:, None], self.bias.float()[:, None]
        return (centred * torch.rsqrt(variance + self.eps) * weight + bias).to(x.dtype)
