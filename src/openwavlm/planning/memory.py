"""What training a micro-batch takes of a device's memory, estimated from the config alone.

Counted byte by byte as torch 2.11 keeps it: parameters, gradients and AdamW's moments in float32; under a mixed precision a 16-bit copy
of the weights for as long as the step lasts; with several processes DDP's buckets; and each tensor that autograd keeps from the forward
for the backward (`kept`). What the backward takes beyond that is the larger of two moments: its beginning, when all is still kept, with
two gradients of the encoder's largest tensor (and one layer computed again); and its end, when only the extractor's activations are
left (kept, or computed again), with two gradients of the largest of these. The largest tensors are the early convolutions' (a frame
every 5 samples in layer 0) and, at long rows, those of size rows · heads · frames²: the softmax of `eager`, the gated bias of `sdpa`;
`flex` has neither.

Assumed: each process holds the whole model (`strategy: ddp`); rows of equal length; `where` LayerDrop; no compiled layers (fewer
tensors); the fused attention kernels on a GPU (a CPU's `sdpa` with a learnt bias keeps the softmax, as `eager` does). Not counted: the
CUDA context (half a GiB or so), the allocator's fragmentation, cuDNN's workspaces, batches read ahead. Compared with torch's saved
tensors and with its memory tracker on a CPU in `tests/unit/test_costs.py`; not yet compared with a GPU's peak.
"""

from dataclasses import dataclass
from typing import Literal

from openwavlm.audio.spectra import NUM_BANDS
from openwavlm.model.attention import choose_backend
from openwavlm.model.config import WavLMConfig
from openwavlm.model.costs import (
    HeadShape,
    MicroBatchShape,
    Recompute,
    conv_frames,
    conv_norms,
    count_parameters,
    positional_frames,
)

_FLOAT = 4


@dataclass(frozen=True)
class Memory:
    """Bytes of a training process on its device.

    Attributes:
        states: Parameters, gradients, moments, 16-bit copies, buckets.
        kept: Activations at the end of the forward by part.
        backward: What the backward takes at most beyond these.
    """

    states: dict[str, int]
    kept: dict[str, int]
    backward: int

    @property
    def activations(self) -> int:
        """Activations and their gradients at their peak."""
        return sum(self.kept.values()) + self.backward

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self.states.values()) + self.activations


def estimate_memory(
    config: WavLMConfig,
    head: HeadShape,
    batch: MicroBatchShape,
    *,
    precision: str,
    recompute: Recompute = "none",
    device: Literal["cuda", "cpu"] = "cuda",
    processes: int = 1,
    strategy: Literal["ddp", "fsdp"] = "ddp",
    ema: bool = False,
) -> Memory:
    """Estimates the memory of one training process.

    Args:
        config: The encoder, whose `attention_backend` counts.
        head: The head.
        batch: The micro-batch.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        recompute: Which activations the backward computes again.
        device: What it runs on: dropout's masks take a byte on a GPU and four on a CPU.
        processes: Of the run; more than one keeps DDP's buckets, or FSDP2's shards and the two groups that are whole at a time.
        strategy: `ddp` or `fsdp`.
        ema: Whether a running mean of the weights is kept.

    Returns:
        Bytes by part.
    """
    size = _Sizes(config, head, batch, mixed=precision != "32-true", on_gpu=device == "cuda")
    parameters = sum(count_parameters(config, head).values())
    states = {"parameters": 4 * parameters, "gradients": 4 * parameters, "moments": 8 * parameters}
    if ema:
        states["running mean"] = 4 * parameters
    if processes > 1 and strategy == "fsdp":
        states = {name: -(-count // processes) for name, count in states.items()}
        states["gathered"] = 2 * _FLOAT * (parameters // max(config.layers, 1))  # no group is larger than a layer by much
    elif processes > 1:
        states["buckets"] = 4 * parameters
    if size.mixed:
        states["weights in 16 bits"] = 2 * parameters if strategy == "ddp" or processes == 1 else states["gathered"] // 2
    layer, extractor = size.layer(), size.extractor()
    always = {"waveforms": size.waveforms(), "features": size.features()}
    held = config.layers * (layer if recompute != "all" else _FLOAT * size.positions * config.dim)
    kept = {**always, "encoder input": size.encoder_input(), "layers": held, "head": size.head_part()}
    if recompute == "none":
        kept["extractor"] = extractor
    beginning = 2 * size.largest_of_encoder() + (layer if recompute == "all" else 0)
    end = sum(always.values()) + extractor + 2 * size.largest_of_extractor() - sum(kept.values())
    return Memory(states, kept, max(beginning, end))


class _Sizes:
    """Bytes that autograd keeps, part by part; `low` is the width of the precision's products."""

    def __init__(self, config: WavLMConfig, head: HeadShape, batch: MicroBatchShape, *, mixed: bool, on_gpu: bool) -> None:
        self.config, self.head, self.batch, self.mixed = config, head, batch, mixed
        self.low = 2 if mixed else _FLOAT
        self.mask = 1 if on_gpu else _FLOAT
        self.on_gpu = on_gpu
        self.backend = choose_backend(config.attention_backend)
        self.positions = batch.rows * batch.frames
        self.scores = self.positions * batch.frames * config.heads
        lengths = conv_frames(config, batch.samples)
        self.outputs = [batch.rows * length * width for length, width in zip(lengths, config.conv_dims, strict=True)]

    def waveforms(self) -> int:
        """The batch: int16 and float32."""
        return self.batch.rows * self.batch.samples * (2 + _FLOAT)

    def extractor(self) -> int:
        """Each convolution's output, its norm's (whose input is float32), its GELU's; the last GELU's belongs to `features`."""
        if self.config.front_end == "logmel":
            return _FLOAT * self.positions * NUM_BANDS
        if self.config.feature_grad_mult == 0:
            return 0
        total = self.batch.rows * self.batch.samples * (2 if self.mixed else 0)
        for count, normed in zip(self.outputs, conv_norms(self.config), strict=True):
            total += count * (2 * self.low + _FLOAT * normed)
        return total - self.low * self.outputs[-1]

    def features(self) -> int:
        """The extractor's output, and under a mixed precision its two float32 copies, for the norm and for the penalty."""
        return self.positions * self.config.conv_dims[-1] * (self.low + (2 * _FLOAT if self.mixed else 0))

    def encoder_input(self) -> int:
        """Projection, mask, positional convolution and its normed kernel, first norm, and the bias that the layers share."""
        config, frames = self.config, self.batch.frames
        total = self.positions * (self.low * config.conv_dims[-1] + self.mask * config.dim * (config.input_dropout > 0))
        total += self.low * config.dim * (self.positions + self.batch.rows * positional_frames(config, frames))
        if not self.mixed:  # else it is among the weights in 16 bits
            total += _FLOAT * config.positional_kernel * config.dim * config.dim // config.positional_groups
        total += self.positions * config.dim * (_FLOAT * (not config.pre_norm) + self.mask * (config.dropout > 0))
        return total + (0 if self.backend == "flex" else _FLOAT * config.heads * frames * frames)

    def layer(self) -> int:
        """One layer: inputs of its linear maps and norms, query, key, value, the GELU's input and output, masks, attention."""
        config = self.config
        # Mixed: autocast gives each of the four maps that read the stream a copy of its own, and norms read float32; a post-norm
        # model's stream is in none of these, but its float32 is held as a hidden state.
        wide = (26 if config.pre_norm else 30) if self.mixed else 8 * _FLOAT
        per_position = wide * config.dim + 2 * self.low * config.ffn_dim + 4 * _FLOAT * config.heads
        per_position += 2 * self.mask * config.dim * (config.dropout > 0)
        per_position += (self.mask + self.low) * config.ffn_dim * (config.activation_dropout > 0)
        return self.positions * per_position + self._attention_scores()

    def _attention_scores(self) -> int:
        dropped = self.config.attention_dropout > 0
        if self.backend == "flex":
            return _FLOAT * self.positions * self.config.heads  # the softmax's normaliser
        if self.backend == "sdpa" and self.on_gpu:
            cast = 2 * self.config.heads * self.batch.frames**2 if self.mixed else 0
            return self.low * self.scores + cast + _FLOAT * self.positions * self.config.heads
        if self.backend == "sdpa":
            return self.scores * (self.low + dropped * (self.mask + self.low))
        again = self.low if dropped or self.mixed else 0  # after dropout, or in the width of the values
        return self.scores * (_FLOAT + again + self.mask * dropped)

    def head_part(self) -> int:
        """The closing norm's input, the predicted frames, their projections and directions, the label directions, the log-softmax."""
        frames, head = self.batch.predicted_frames, self.head
        total = _FLOAT * self.positions * self.config.dim * self.config.pre_norm
        total += frames * (self.low * self.config.dim + 2 * _FLOAT * head.final_dim * head.projections + _FLOAT * head.embeddings)
        return total + _FLOAT * head.embeddings * head.final_dim

    def largest_of_extractor(self) -> int:
        """The largest tensor of the extractor that has a gradient."""
        if self.config.front_end == "logmel" or self.config.feature_grad_mult == 0:
            return 0
        return max(
            count * (_FLOAT if normed else self.low) for count, normed in zip(self.outputs, conv_norms(self.config), strict=True)
        )

    def largest_of_encoder(self) -> int:
        """The largest tensor of encoder and head."""
        scores = 0 if self.backend == "flex" else (self.low if self.backend == "sdpa" else _FLOAT) * self.scores
        return max(
            scores,
            self.low * self.positions * self.config.ffn_dim,
            _FLOAT * self.positions * self.config.dim,
            _FLOAT * self.batch.predicted_frames * self.head.embeddings,
        )
