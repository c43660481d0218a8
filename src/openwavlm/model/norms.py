"""Normalisations in float32 at every precision of the model; the output has the input's type."""

import torch.nn.functional as F
from torch import Tensor, nn


class Float32LayerNorm(nn.LayerNorm):
    """LayerNorm over the last dimension (eps 1e-5) with statistics and affine map in float32."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x` (..., dim)."""
        return F.layer_norm(x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)


class Float32GroupNorm(nn.GroupNorm):
    """GroupNorm with statistics and affine map in float32; with one group per channel, an instance norm over time."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises `x` (batch, channels, frames)."""
        assert self.weight is not None and self.bias is not None
        return F.group_norm(x.float(), self.num_groups, self.weight.float(), self.bias.float(), self.eps).to(x.dtype)
