"""Transformer encoder: positional convolution, layers, LayerDrop (WavLM §III-A)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openwavlm.model.attention import GatedAttention, RelativePositionBias, choose_backend, toeplitz
from openwavlm.model.norms import Float32LayerNorm
from openwavlm.model.positional import PositionalConv


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

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        *,
        pre_norm: bool,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        recompute: bool = False,
    ):
        super().__init__()
        self.pre_norm = pre_norm
        self.recompute = recompute
        self.attention = GatedAttention(dim, heads, dropout=attention_dropout)
        self.attention_norm = Float32LayerNorm(dim)
        self.feed_forward = FeedForward(dim, ffn_dim, dropout=activation_dropout)
        self.feed_forward_norm = Float32LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

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


class TransformerEncoder(nn.Module):
    """Positional convolution and a stack of layers over one shared relative position bias.

    Args:
        pre_norm: Normalise before each part and once at the end, instead of after each part and once at the start.
        skip_dropped_layers: Whether a dropped layer is not computed at all; reads the draw on the host.
        recompute_layers: Whether the backward pass computes each layer again instead of keeping what is inside it.
    """

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        layers: int,
        *,
        pre_norm: bool,
        positional_kernel: int,
        positional_groups: int,
        num_buckets: int,
        max_distance: int,
        dropout: float,
        attention_dropout: float,
        activation_dropout: float,
        attention_backend: str,
        skip_dropped_layers: bool = False,
        recompute_layers: bool = False,
    ):
        super().__init__()
        self.pre_norm = pre_norm
        self.attention_backend = attention_backend
        self.skip_dropped_layers = skip_dropped_layers
        self.positional = PositionalConv(dim, positional_kernel, positional_groups)
        self.norm = Float32LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.relative_bias = RelativePositionBias(heads, num_buckets=num_buckets, max_distance=max_distance)
        self.layers = nn.ModuleList(
            TransformerLayer(
                dim,
                ffn_dim,
                heads,
                pre_norm=pre_norm,
                dropout=dropout,
                attention_dropout=attention_dropout,
                activation_dropout=activation_dropout,
                recompute=recompute_layers,
            )
            for _ in range(layers)
        )

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
            until_layer: How many layers to run; None = all.

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
            relative_bias = toeplitz(relative_bias)
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
