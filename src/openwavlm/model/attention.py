"""Self-attention with WavLM's gated relative position bias (WavLM §III-C).

    logits[h, i, j] = q_i · k_j / √head_dim + gate[h, i] · table[h, j − i]

The bias of all layers comes from one table with an entry per head and offset; each layer gates it by its own input. Three backends
compute the same function: `eager` (the reference), `sdpa` (fused, materialises the gated bias) and `flex` (looks the table up
inside the kernel, without a tensor of batch · heads · frames²).
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

_FLOAT16_SCALE = 32.0


def relative_buckets(offsets: Tensor, *, num_buckets: int, max_distance: int) -> Tensor:
    """Bucket of each relative position, T5's bidirectional scheme.

    The first half of the buckets serves keys at or before the query, the second half keys after it; in each half the near
    distances (a quarter of `num_buckets`) have a bucket of their own and the rest share logarithmic ones up to `max_distance`.

    Args:
        offsets: int64, key minus query position in frames.
        max_distance: Distance in frames from which all share the last bucket.

    Returns:
        int64 of `offsets`' shape.
    """
    half = num_buckets // 2
    exact = half // 2
    distance = offsets.abs()
    octaves = torch.log(distance.clamp(min=exact).float() / exact) / math.log(max_distance / exact)
    far = (exact + octaves * (half - exact)).long().clamp(max=half - 1)
    return torch.where(distance < exact, distance, far) + half * (offsets > 0)


class RelativePositionBias(nn.Module):
    """Learnt bias of each head and bucket, shared by all layers."""

    def __init__(self, heads: int, *, num_buckets: int, max_distance: int):
        super().__init__()
        self.embedding = nn.Embedding(num_buckets, heads)
        self.num_buckets = num_buckets
        self.max_distance = max_distance

    def forward(self, frames: int) -> Tensor:
        """Table (heads, 2 · frames − 1); entry `offset + frames − 1` belongs to `offset` = key − query."""
        offsets = torch.arange(1 - frames, frames, device=self.embedding.weight.device)
        buckets = relative_buckets(offsets, num_buckets=self.num_buckets, max_distance=self.max_distance)
        return self.embedding(buckets).t()


def toeplitz(table: Tensor) -> Tensor:
    """Spreads a table (heads, 2 · frames − 1) to (heads, query, key)."""
    frames = (table.shape[-1] + 1) // 2
    # Sliding windows are the rows in reverse order; their backward sums in a fixed order, where a gather's adds atomically.
    return table.unfold(-1, frames, 1).flip(1)


def toeplitz_by_gather(table: Tensor) -> Tensor:
    """`toeplitz` by indices, for traced graphs: a traced `unfold` keeps the window of the traced length (torch 2.11)."""
    frames = (table.shape[-1] + 1) // 2
    positions = torch.arange(frames, device=table.device)
    return table[:, positions - positions.unsqueeze(-1) + frames - 1]


def choose_backend(backend: str) -> str:
    """Resolves `auto` to `sdpa`; `flex` cannot drop attention weights and has not been run on a GPU yet."""
    return "sdpa" if backend == "auto" else backend


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    return torch.compile(flex_attention)


def eager_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor, key_padding: Tensor | None, *, dropout: float
) -> Tensor:
    """Reference: explicit logits and a float32 softmax.

    Args:
        query: (batch, heads, frames, head_dim).
        gate: float32 (batch, heads, frames).
        bias: (heads, frames, frames), not gated.
        key_padding: bool (batch, frames), True = not attended to; None = no padding.
        dropout: Probability with which an attention weight is dropped.

    Returns:
        (batch, heads, frames, head_dim).
    """
    if query.dtype == torch.float16:
        # WavLM's Eq. 8: a product beyond float16's range is scaled down before and up after (c = 32 there too).
        smaller = query / (_FLOAT16_SCALE * math.sqrt(query.shape[-1]))
        logits = (smaller @ key.transpose(-1, -2)).float() * _FLOAT16_SCALE + gate.unsqueeze(-1) * bias
    else:
        logits = (query @ key.transpose(-1, -2)).float() / math.sqrt(query.shape[-1]) + gate.unsqueeze(-1) * bias
    if key_padding is not None:
        logits = logits.masked_fill(key_padding[:, None, None, :], -torch.inf)
    weights = F.dropout(logits.softmax(-1), dropout)
    return weights.to(value.dtype) @ value


def sdpa_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, bias: Tensor, key_padding: Tensor | None, *, dropout: float
) -> Tensor:
    """`eager_attention` on torch's fused kernels; the gated bias is materialised in the model's precision."""
    gated = gate.unsqueeze(-1).to(query.dtype) * bias.to(query.dtype)
    if key_padding is not None:
        gated = gated.masked_fill_(key_padding[:, None, None, :], -torch.inf)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=gated, dropout_p=dropout)


def flex_gated_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, table: Tensor, key_padding: Tensor | None
) -> Tensor:
    """`eager_attention` without dropout and with the (heads, 2 · frames − 1) `table` in place of the dense bias."""
    last = (table.shape[-1] - 1) // 2

    def add_bias(score: Tensor, batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
        score = score + gate[batch, head, i] * table[head, j - i + last]
        return score if key_padding is None else torch.where(key_padding[batch, j], -torch.inf, score)

    # Uncompiled, flex materialises everything, which is fine on a CPU; inside a compiled model it is traced.
    attend = flex_attention if query.device.type == "cpu" or torch.compiler.is_compiling() else _compiled_flex()
    return attend(query, key, value, score_mod=add_bias)  # type: ignore[return-value]


class GatedAttention(nn.Module):
    """Multi-head self-attention; the relative bias of each head is gated by its `dim / heads` channels of the input."""

    def __init__(self, dim: int, heads: int, *, dropout: float):
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.output = nn.Linear(dim, dim)
        # Two gates, each a sum of four outputs; the shape is that of every published checkpoint.
        self.gate = nn.Linear(dim // heads, 8)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def bias_gate(self, x: Tensor) -> Tensor:
        """Factor of the relative bias, float32 (batch, heads, frames), from the attention's input (batch, frames, dim)."""
        # A sum of outputs of one linear map is a linear map with summed rows: a quarter of the work.
        weight = self.gate.weight.view(2, 4, -1).sum(1)
        bias = self.gate.bias.view(2, 4).sum(1)
        update, reset = F.linear(x.unflatten(-1, (self.heads, -1)), weight, bias).float().sigmoid().unbind(-1)
        return (update * (reset * self.gate_scale.view(-1) - 1) + 2).transpose(1, 2)

    def forward(self, x: Tensor, relative_bias: Tensor, key_padding: Tensor | None, *, backend: str) -> Tensor:
        """Maps (batch, frames, dim) to (batch, frames, dim).

        Args:
            relative_bias: The table (heads, 2 · frames − 1) for `flex`, its Toeplitz form (heads, frames, frames) otherwise.
            key_padding: bool (batch, frames), True = not attended to; never True over a whole row.
        """
        query, key, value = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key, self.value)
        )
        gate = self.bias_gate(x)
        if backend == "flex":
            attended = flex_gated_attention(query, key, value, gate, relative_bias, key_padding)
        else:
            attend = eager_attention if backend == "eager" else sdpa_attention
            dropout = self.dropout if self.training else 0.0
            attended = attend(query, key, value, gate, relative_bias, key_padding, dropout=dropout)
        return self.output(attended.transpose(1, 2).flatten(2))
