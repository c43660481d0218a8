"""Transformer encoder: positional convolution, layers, LayerDrop (WavLM §III-A)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.checkpoint import checkpoint

from openwavlm.model.attention import GatedAttention, RelativePositionBias, choose_backend, toeplitz
from openwavlm.model.config import WavLMConfig
from openwavlm.model.norms import Float32LayerNorm


class FeedForward(nn.Module):
    """Linear, GELU, dropout, linear."""

    def __init__(self, dim: int, ffn_dim: int, *, dropout: float):
        super().__init__()
        self.expand = nn.Linear(dim, ffn_dim)
        self.contract = nn.Linear(ffn_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (..., dim) to (..., dim)."""
        return self.contract(self.dropout(F.gelu(self.expand(x))))


class TransformerLayer(nn.Module):
    """Attention and feed-forward, each with a residual, normalised before (`pre_norm`, Large) or after (Base)."""

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.recompute = config.recompute == "all"
        self.attention = GatedAttention(config.dim, config.heads, dropout=config.attention_dropout)
        self.attention_norm = Float32LayerNorm(config.dim)
        self.feed_forward = FeedForward(config.dim, config.ffn_dim, dropout=config.activation_dropout)
        self.feed_forward_norm = Float32LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, relative_bias: Tensor, key_padding: Tensor | None, *, backend: str) -> Tensor:
        """Maps (batch, frames, dim) to (batch, frames, dim); the other arguments are `GatedAttention.forward`'s."""
        # Inside the layer, so that a sharded layer gathers its weights once for both.
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._transform, x, relative_bias, key_padding, backend, use_reentrant=False)
        return self._transform(x, relative_bias, key_padding, backend)

    def _transform(self, x: Tensor, relative_bias: Tensor, key_padding: Tensor | None, backend: str) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.attention(self.attention_norm(x), relative_bias, key_padding, backend=backend))
            return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        x = self.attention_norm(x + self.dropout(self.attention(x, relative_bias, key_padding, backend=backend)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


def convolves_in_float32(device: torch.device) -> bool:
    """Whether the positional convolution is computed in float32 at every precision: on a CPU.

    With AMX, oneDNN's forward pass in bfloat16 is wrong for some even kernels with fewer than 16 channels a group (torch 2.11 and 2.13:
    relative error 1.1 at 8 and 12 channels).
    """
    return device.type == "cpu"


class PositionalConv(nn.Module):
    """Positional embedding (wav2vec 2.0 §2): grouped convolution over time, weight-normalised for each tap, then GELU."""

    def __init__(self, dim: int, kernel: int, groups: int):
        super().__init__()
        self.conv = weight_norm(nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups), dim=2)
        self.surplus = 1 - kernel % 2  # frames that an even kernel gives too many, at the end

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
        y = self._convolved(x.transpose(1, 2))
        return F.gelu(y[..., : y.shape[-1] - self.surplus]).transpose(1, 2)

    def _convolved(self, x: Tensor) -> Tensor:
        if not convolves_in_float32(x.device):
            return self.conv(x)
        with torch.autocast("cpu", enabled=False):
            conv = self.conv
            bias = None if conv.bias is None else conv.bias.float()
            y = F.conv1d(x.float(), conv.weight.float(), bias, padding=conv.padding, groups=conv.groups)
        return y.to(x.dtype)


class TransformerEncoder(nn.Module):
    """Positional convolution and a stack of layers over one shared relative position bias.

    With `pre_norm` the encoder normalises once at the end, otherwise once at the start. With `layer_drop_mode: skip` it reads
    LayerDrop's draw on the host.
    """

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention_backend = config.attention_backend
        self.skip_dropped_layers = config.layer_drop_mode == "skip"
        self.spread_bias = toeplitz  # `checkpoints.onnx` replaces it while it traces
        self.positional = PositionalConv(config.dim, config.positional_kernel, config.positional_groups)
        self.norm = Float32LayerNorm(config.dim)
        self.dropout = nn.Dropout(config.dropout)
        self.relative_bias = RelativePositionBias(config.heads, num_buckets=config.num_buckets, max_distance=config.max_distance)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.layers))

    def forward(
        self,
        x: Tensor,
        padding_mask: Tensor | None = None,
        *,
        layer_keep: Tensor | None = None,
        until_layer: int | None = None,
    ) -> list[Tensor]:
        """Runs the encoder.

        Args:
            x: (batch, frames, dim).
            padding_mask: bool (batch, frames), True = padding.
            layer_keep: bool (layers,), False = the layer is an identity; None = all layers.
            until_layer: Number of layers to run; None = all.

        Returns:
            The stream before the first layer and after each layer (after its residual), (batch, frames, dim) each; the
            closing norm of a `pre_norm` encoder is not applied.
        """
        if torch.is_autocast_enabled(x.device.type):
            x = x.float()  # the residual stream stays in float32: in bfloat16 it loses a fifth of the accuracy over 12 layers
        key_padding = None
        if padding_mask is not None:
            x = x.masked_fill(padding_mask.unsqueeze(-1), 0)
            # A softmax over nothing is NaN: a row without a valid frame attends to its zeros, and its output is not used.
            key_padding = padding_mask & ~padding_mask.all(1, keepdim=True)
        x = x + self.positional(x)
        x = self.dropout(x if self.pre_norm else self.norm(x))
        backend = choose_backend(self.attention_backend)
        relative_bias = self.relative_bias(x.shape[1])
        if backend != "flex":
            relative_bias = self.spread_bias(relative_bias)
        hidden_states = [x]
        for index, layer in enumerate(self.layers[:until_layer]):
            if layer_keep is None:
                x = layer(x, relative_bias, key_padding, backend=backend)
            elif not self.skip_dropped_layers:
                x = torch.where(layer_keep[index], layer(x, relative_bias, key_padding, backend=backend), x)
            elif bool(layer_keep[index]):
                x = layer(x, relative_bias, key_padding, backend=backend)
            hidden_states.append(x)
        return hidden_states
