"""Architecture of a WavLM model: every number, checked (SPEC values in `conf/model/`)."""

import math
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from openwavlm.audio.frames import HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES


@dataclass(frozen=True, kw_only=True)
class WavLMConfig:
    """Architecture of a model and the regularisation that belongs to its recipe; the defaults are WavLM Base's.

    In parentheses: the key of fairseq and of Microsoft's checkpoints.

    Attributes:
        front_end: `conv`, WavLM's waveform extractor; or `logmel`, a control: 40 log-mels normalised over the utterance, mapped
            linearly to the last of `conv_dims`. No other entry of `conv_*` is used then.
        conv_dims: Channels of the extractor's layers (conv_feature_layers, first of each triple).
        conv_kernels: Kernels of the same (second of each triple); with the strides they must give a receptive field of 400 samples.
        conv_strides: Strides of the same (third of each triple), with product 320.
        conv_bias: Convolutions with a bias (conv_bias).
        extractor_norm: `group`, GroupNorm on the first layer, or `layer`, LayerNorm on every layer (extractor_mode: default, layer_norm).
        dim: Width of the encoder (encoder_embed_dim).
        ffn_dim: Inner width of a layer's feed-forward part (encoder_ffn_embed_dim).
        heads: Attention heads (encoder_attention_heads).
        layers: Encoder layers (encoder_layers).
        pre_norm: Normalise before each part of a layer, as Large, instead of after it, as Base (layer_norm_first).
        positional_kernel: Taps of the positional convolution (conv_pos).
        positional_groups: Groups of the positional convolution (conv_pos_groups).
        num_buckets: Buckets of relative positions (num_buckets).
        max_distance: Distance in frames from which all share a bucket (max_distance).
        dropout: Dropout of the encoder's input and of the residual branches (dropout).
        attention_dropout: Dropout of the attention weights (attention_dropout).
        activation_dropout: Dropout inside the feed-forward parts (activation_dropout).
        input_dropout: Dropout of the projected features (dropout_input).
        layer_drop: Probability with which training drops a layer (encoder_layerdrop).
        layer_drop_mode: `where` computes a dropped layer and discards it, so that all processes do the same work; `skip` does
            not compute it, for training on one process only.
        feature_grad_mult: Factor of the extractor's gradient; 0 freezes it (feature_grad_mult).
        normalise_waveform: The model expects waveforms with mean 0 and variance 1 (normalize).
        attention_backend: `auto`, `eager`, `sdpa` or `flex`; changes speed and memory, never the recipe.
        recompute: Activations that the backward pass computes again instead of keeping: `none`, `extractor` (the convolutions; their
            first layers take most of the memory) or `all` (also each encoder layer); same losses and gradients.
        compile_layers: Compile the encoder layers in training (torch.compile): faster after minutes of compiling; the same gradients
            to rounding, and other draws of dropout.

    Raises:
        ValueError: If the extractor does not lie on the 320-sample grid, a number is out of its range, the width does not divide, a
            name is unknown, or `flex` would have to drop attention weights.
    """

    front_end: Literal["conv", "logmel"] = "conv"
    conv_dims: tuple[int, ...] = (512, 512, 512, 512, 512, 512, 512)
    conv_kernels: tuple[int, ...] = (10, 3, 3, 3, 3, 2, 2)
    conv_strides: tuple[int, ...] = (5, 2, 2, 2, 2, 2, 2)
    conv_bias: bool = False
    extractor_norm: Literal["group", "layer"] = "group"
    dim: int = 768
    ffn_dim: int = 3072
    heads: int = 12
    layers: int = 12
    pre_norm: bool = False
    positional_kernel: int = 128
    positional_groups: int = 16
    num_buckets: int = 320
    max_distance: int = 800
    dropout: float = 0.1
    attention_dropout: float = 0.1
    activation_dropout: float = 0.0
    input_dropout: float = 0.1
    layer_drop: float = 0.05
    layer_drop_mode: Literal["where", "skip"] = "where"
    feature_grad_mult: float = 0.1
    normalise_waveform: bool = False
    attention_backend: Literal["auto", "eager", "sdpa", "flex"] = "auto"
    recompute: Literal["none", "extractor", "all"] = "none"
    compile_layers: bool = False

    def __post_init__(self) -> None:
        for name in ("conv_dims", "conv_kernels", "conv_strides"):
            object.__setattr__(self, name, tuple(int(value) for value in getattr(self, name)))
        self._check_extractor()
        self._check_ranges()

    def _check_extractor(self) -> None:
        lengths = (len(self.conv_dims), len(self.conv_kernels), len(self.conv_strides))
        if len(set(lengths)) != 1:
            raise ValueError(
                "conv_dims, conv_kernels and conv_strides must have one entry for each convolution, but have "
                f"{lengths[0]}, {lengths[1]} and {lengths[2]}"
            )
        for name in ("conv_dims", "conv_kernels", "conv_strides"):
            if any(value < 1 for value in getattr(self, name)):
                raise ValueError(f"every entry of {name} must be at least 1, but they are {getattr(self, name)}")
        hop, receptive_field = 1, 1
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            receptive_field += (kernel - 1) * hop
            hop *= stride
        if (hop, receptive_field) != (HOP_SAMPLES, RECEPTIVE_FIELD_SAMPLES):
            raise ValueError(
                f"the extractor must have a hop of {HOP_SAMPLES} samples and a receptive field of {RECEPTIVE_FIELD_SAMPLES} (the "
                f"grid of labels and masks), but its kernels {self.conv_kernels} and strides {self.conv_strides} give {hop} and "
                f"{receptive_field}; use kernels 10-3-3-3-3-2-2 with strides 5-2-2-2-2-2-2"
            )

    def _check_ranges(self) -> None:
        for name in ("dim", "ffn_dim", "heads", "layers", "positional_kernel", "positional_groups"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, but is {getattr(self, name)}")
        for name, parts in (("heads", self.heads), ("positional_groups", self.positional_groups)):
            if self.dim % parts:
                raise ValueError(f"dim must be a multiple of {name}, but is {self.dim} with {parts}")
        if self.num_buckets < 4 or self.num_buckets % 4:
            raise ValueError(f"num_buckets must be a positive multiple of 4, but is {self.num_buckets}; published models use 320")
        if self.max_distance <= self.num_buckets // 4:
            raise ValueError(
                f"max_distance must exceed num_buckets / 4 = {self.num_buckets // 4}, the distances with a bucket of their own, but "
                f"is {self.max_distance}; published models use 800"
            )
        for name in ("dropout", "attention_dropout", "activation_dropout", "input_dropout", "layer_drop"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), but is {getattr(self, name)}; give a probability, 0 for none")
        if not (math.isfinite(self.feature_grad_mult) and self.feature_grad_mult >= 0):
            raise ValueError(
                f"feature_grad_mult must be finite and not negative, but is {self.feature_grad_mult}; 0 freezes the extractor"
            )

        _check_choices(self)
        if self.attention_backend == "flex" and self.attention_dropout > 0:
            raise ValueError(
                f"attention_backend=flex cannot drop attention weights, but attention_dropout is {self.attention_dropout}; "
                "use attention_backend=sdpa, or set attention_dropout=0, which changes the recipe"
            )


@dataclass(frozen=True)
class Head:
    """Prediction head.

    Attributes:
        final_dim: Width of projection and label embeddings: 256 (Base, Base+), 768 (Large) (fairseq: final_dim).
        logit_temperature: Divides the cosine, > 0 (fairseq: logit_temp).
        special_rows: Embeddings before those of the labels that are never correct; 4 as in fairseq's checkpoints.
        label_init: `uniform` U(0, 1) as the references, or `normal` N(0, 1).

    Raises:
        ValueError: If a value is out of its range.
    """

    final_dim: int = 256
    logit_temperature: float = 0.1
    special_rows: int = 0
    label_init: Literal["uniform", "normal"] = "uniform"

    def __post_init__(self) -> None:
        for name, least in (("final_dim", 1), ("special_rows", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, but is {getattr(self, name)}")
        if not self.logit_temperature > 0:
            raise ValueError(f"logit_temperature must be positive, but is {self.logit_temperature}; published models use 0.1")
        _check_choices(self)


def _check_choices(settings: WavLMConfig | Head) -> None:
    for name, hint in get_type_hints(type(settings)).items():
        choices = get_args(hint)
        if get_origin(hint) is Literal and getattr(settings, name) not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {getattr(settings, name)!r}")
