"""WavLM's encoder (Chen et al. 2022, arXiv 2110.13900).

Where this differs from the paper or from Microsoft's code:

1. Gate: from the attention's input split into heads, as in every released model; the paper's notation reads as projected queries.
2. Relative bias: computed outside the layer stack. In Microsoft's code it belongs to layer 0, and a step that drops layer 0
   has no bias in any layer.
3. LayerDrop: drawn in the batch, not here; a dropped layer is computed and discarded (`layer_drop_mode: where`), so all
   processes do the same work. Every layer can be dropped, as in Microsoft's code (Hugging Face never drops layer 0).
4. Padding: a frame is valid when all of its 400 samples are (Hugging Face's rule, and that of our labels). Microsoft's code
   splits the samples evenly over the frames and can count one frame more.
5. A row without a valid frame attends to its own zeros and returns finite numbers; in both references it returns NaN.
6. Waveform normalisation: over the valid samples, with eps 1e-5 (Microsoft's; Hugging Face has 1e-7), once, after mixing.
7. The paper's scaled softmax (Eq. 8, c = 32), which only changes the range of intermediate values, is used in float16 by the eager
   backend alone; bfloat16 and fused kernels do not need it. The released code leaves it out.
8. The gate's eight outputs are summed in the weights, not after the product (equal up to rounding).
9. `dropout_features`, which has no effect on WavLM's loss, does not exist.

Kept on purpose: with `extractor_norm: group` the statistics over time include a row's zero padding, as in both references, so a
padded row differs from the same row alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from openwavlm.audio.frames import RECEPTIVE_FIELD_SAMPLES, num_frames
from openwavlm.model.attention import GatedAttention
from openwavlm.model.config import WavLMConfig
from openwavlm.model.front_ends import ConvExtractor, MelFrontEnd, draw_linear, scale_gradient
from openwavlm.model.norms import Float32LayerNorm
from openwavlm.model.transformer import TransformerEncoder


def normalise(waveforms: Tensor, num_samples: Tensor | None = None) -> Tensor:
    """Brings each row to mean 0 and variance 1 over its valid samples (eps 1e-5); padding becomes 0.

    Args:
        waveforms: float (batch, samples).
        num_samples: int64 (batch,), valid samples; None = all.

    Returns:
        float (batch, samples).
    """
    if num_samples is None:
        return nn.functional.layer_norm(waveforms, waveforms.shape[-1:])
    valid = torch.arange(waveforms.shape[-1], device=waveforms.device) < num_samples.unsqueeze(-1)
    count = num_samples.clamp(min=1).unsqueeze(-1)
    centred = torch.where(valid, waveforms - torch.where(valid, waveforms, 0).sum(-1, keepdim=True) / count, 0)
    return centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / count + 1e-5)


class WavLMOutput(NamedTuple):
    """Output of one forward pass."""

    hidden_states: list[Tensor]  # (batch, frames, dim) each: the encoder's input, and each layer's output after its residual
    final: Tensor  # (batch, frames, dim): the last one, through the closing norm if the model is `pre_norm` and all layers ran
    features: Tensor  # (batch, channels, frames): the extractor's output, with its gradient scaled by `feature_grad_mult`
    padding_mask: Tensor | None  # bool (batch, frames), True = padding; None without `num_samples`


class WavLM(nn.Module):
    """Encoder: convolutional extractor, mask embedding, Transformer."""

    def __init__(self, config: WavLMConfig):
        super().__init__()
        self.config = config
        self.extractor = ConvExtractor(config) if config.front_end == "conv" else MelFrontEnd(config.conv_dims[-1])
        self.feature_norm = Float32LayerNorm(config.conv_dims[-1])
        self.projection = nn.Linear(config.conv_dims[-1], config.dim)
        self.input_dropout = nn.Dropout(config.input_dropout)
        self.mask_embedding = nn.Parameter(torch.empty(config.dim))
        self.encoder = TransformerEncoder(config)
        if config.feature_grad_mult == 0:
            self.extractor.requires_grad_(False)
        if not self.mask_embedding.is_meta:
            self.initialise()

    @torch.no_grad()
    def initialise(self) -> None:
        """Draws every parameter as fairseq does, on the CPU and from torch's generator, whatever the model's device.

        Linear maps of the encoder and the relative bias ~ N(0, 0.02²) with zero biases, convolutions by He's rule, the mask
        embedding ~ U(0, 1); without the N(0, 0.02²) learning suffers measurably (torchaudio #2716).
        """
        self.extractor.initialise()
        draw_linear(self.projection)
        self.mask_embedding.copy_(torch.empty(self.mask_embedding.shape, device="cpu").uniform_(0, 1))
        for module in self.modules():
            if isinstance(module, nn.LayerNorm | nn.GroupNorm):
                module.weight.fill_(1)
                module.bias.zero_()
        self.encoder.positional.initialise()
        for module in self.encoder.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                module.weight.copy_(torch.empty(module.weight.shape, device="cpu").normal_(0, 0.02))
            if isinstance(module, nn.Linear):
                module.bias.zero_()
            if isinstance(module, GatedAttention):
                module.gate_scale.fill_(1)

    def forward(
        self,
        waveforms: Tensor,
        num_samples: Tensor | None = None,
        *,
        mask: Tensor | None = None,
        channel_mask: Tensor | None = None,
        layer_keep: Tensor | None = None,
        until_layer: int | None = None,
    ) -> WavLMOutput:
        """Encodes waveforms, which the caller has normalised if `config.normalise_waveform`.

        Args:
            waveforms: float (batch, samples) in [−1, 1], 16 kHz, zero-padded at the end.
            num_samples: int64 (batch,), valid samples; None = all.
            mask: bool (batch, frames), True = replaced by the mask embedding.
            channel_mask: bool (batch, dim), True = 0 in every frame (SpecAugment's frequency mask on the encoder's input).
            layer_keep: bool (layers,), LayerDrop's draw; read in training only.
            until_layer: Number of layers to run; None = all.

        Returns:
            Hidden states, final output, features and padding mask.

        Raises:
            ValueError: If the waveforms are not floating point or shorter than 400 samples; if `num_samples` does not have a whole
                number for each row; if `until_layer` is outside 0…layers; if `mask` does not have a value for each frame.
        """
        self._check(waveforms, num_samples, until_layer)
        features = self._features(waveforms, num_samples)
        batch, _, frames = features.shape
        padding_mask = None
        if num_samples is not None:
            padding_mask = torch.arange(frames, device=features.device) >= num_frames(num_samples).unsqueeze(-1)
        x = self.input_dropout(self.projection(self.feature_norm(features.transpose(1, 2))))
        if mask is not None:
            if mask.shape != (batch, frames):
                raise ValueError(
                    f"the mask must have one value for each frame, ({batch}, {frames}), but has shape {tuple(mask.shape)}; "
                    "make it from frames.num_frames of the padded length"
                )
            x = torch.where(mask.unsqueeze(-1), self.mask_embedding.to(x.dtype), x)
        if channel_mask is not None:
            x = x.masked_fill(channel_mask.unsqueeze(1), 0)
        hidden_states = self.encoder(x, padding_mask, layer_keep=layer_keep if self.training else None, until_layer=until_layer)
        final = hidden_states[-1]
        if self.config.pre_norm and len(hidden_states) == self.config.layers + 1:
            final = self.encoder.norm(final)
        return WavLMOutput(hidden_states, final, features, padding_mask)

    def compile_layers(self) -> None:
        """Compiles each encoder layer in place; names of parameters stay as they are.

        Never compile the model as a whole: on a CPU, torch 2.11 then reuses buffers wrongly and returns silently wrong gradients of
        the relative bias and of `gate_scale` (0.2 and 1.0 relative; right with inductor's buffer reuse off).
        """
        for layer in self.encoder.layers:
            layer.compile()

    def _check(self, waveforms: Tensor, num_samples: Tensor | None, until_layer: int | None) -> None:
        if not waveforms.is_floating_point():
            raise ValueError(
                f"waveforms must be floating point in [-1, 1], but are {waveforms.dtype}; divide 16-bit samples by 32768"
            )
        if waveforms.shape[-1] < RECEPTIVE_FIELD_SAMPLES:
            raise ValueError(
                f"waveforms must have at least {RECEPTIVE_FIELD_SAMPLES} samples (one frame), but have {waveforms.shape[-1]}; "
                "pad them with zeros and pass num_samples"
            )
        if num_samples is not None and (num_samples.shape != waveforms.shape[:1] or num_samples.is_floating_point()):
            raise ValueError(
                f"num_samples must be a whole number for each of the {waveforms.shape[0]} rows, but has shape "
                f"{tuple(num_samples.shape)} and type {num_samples.dtype}; count the samples before padding"
            )
        if until_layer is not None and not 0 <= until_layer <= self.config.layers:
            raise ValueError(f"until_layer must lie in 0…{self.config.layers}, but is {until_layer}")

    def _features(self, waveforms: Tensor, num_samples: Tensor | None) -> Tensor:
        factor = self.config.feature_grad_mult
        with torch.no_grad() if factor == 0 else nullcontext():
            if self.config.recompute != "none" and torch.is_grad_enabled():
                return scale_gradient(checkpoint(self.extractor, waveforms, num_samples, use_reentrant=False), factor)
            return scale_gradient(self.extractor(waveforms, num_samples), factor)

    @torch.no_grad()
    def extract(
        self,
        waveforms: Tensor,
        num_samples: Tensor | None = None,
        layers: Literal["all"] | Sequence[int] = "all",
        *,
        final_norm: bool = False,
        with_padding: bool = False,
    ) -> list[Tensor]:
        """Features of raw waveforms, without dropout and gradients; normalises the waveforms if `normalise_waveform` is set.

        Each row is as it would be alone: the group norm of Base models takes its statistics over the padding too, so rows of such a
        model are run by length. Entries from `frames.num_frames(num_samples[row])` on are padding.

        Args:
            waveforms: float (batch, samples) in [−1, 1], 16 kHz, zero-padded at the end.
            num_samples: int64 (batch,), valid samples; None = all.
            layers: Numbers of layers, 0 = the encoder's input; no layer above the highest is run.
            final_norm: Applies the closing norm to a `pre_norm` model's last layer (Hugging Face's `last_hidden_state`).
            with_padding: Runs rows of different lengths together with every norm, as Transformers does.

        Returns:
            (batch, frames, dim) for each entry of `layers`, after the residual.

        Raises:
            ValueError: If no layer is named or one is outside 0…layers; if `num_samples` has a value below 0 or beyond the waveforms'
                length; and as `forward` does.
        """
        wanted = list(range(self.config.layers + 1)) if layers == "all" else [int(layer) for layer in layers]
        if not wanted or min(wanted) < 0 or max(wanted) > self.config.layers:
            raise ValueError(
                f"layers must name at least one of 0…{self.config.layers} (0 is the encoder's input), but is {layers}"
            )
        self._check(waveforms, num_samples, None)
        if num_samples is not None and bool(((num_samples < 0) | (num_samples > waveforms.shape[1])).any()):
            raise ValueError(
                f"num_samples must lie in 0…{waveforms.shape[1]}, the samples of a row, but are {num_samples.tolist()}; count the samples "
                "before padding"
            )
        depends_on_padding = self.config.front_end == "conv" and self.config.extractor_norm == "group" and not with_padding
        if depends_on_padding and num_samples is not None and bool((num_samples < waveforms.shape[1]).any()):
            return self._extract_by_length(waveforms, num_samples, wanted, final_norm=final_norm)
        if self.config.normalise_waveform:
            waveforms = normalise(waveforms, num_samples)
        with evaluating(self):
            output = self(waveforms, num_samples, until_layer=max(wanted))
        states = output.hidden_states
        if final_norm and len(states) == self.config.layers + 1:
            states = [*states[:-1], output.final]
        return [states[layer] for layer in wanted]

    def _extract_by_length(
        self, waveforms: Tensor, num_samples: Tensor, layers: Sequence[int], *, final_norm: bool
    ) -> list[Tensor]:
        batch, samples = waveforms.shape
        found = [waveforms.new_zeros(batch, int(num_frames(samples)), self.config.dim) for _ in layers]
        for length in num_samples.unique().tolist():
            rows = (num_samples == length).nonzero().flatten()
            if num_frames(length) == 0:
                continue  # all padding
            states = self.extract(waveforms[rows, :length], layers=layers, final_norm=final_norm)
            for all_rows, of_length in zip(found, states, strict=True):
                all_rows[rows, : of_length.shape[1]] = of_length.to(all_rows.dtype)
        return found


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts every part of `model` into evaluation mode and restores the mode of each."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
