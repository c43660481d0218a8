"""Our configuration ↔ the keys of Microsoft's and fairseq's configurations (SPEC §6.4)."""

import ast
from collections.abc import Mapping
from typing import Any

from openwavlm.checkpoints.values import built, check_conv_front_end, read_fields, shown, typed
from openwavlm.model.config import WavLMConfig

# Our field → their key and their classes' default (Microsoft's WavLM.py; fairseq's wav2vec 2.0).
_KEYS: dict[str, tuple[str, Any]] = {
    "conv_bias": ("conv_bias", False),
    "dim": ("encoder_embed_dim", 768),
    "ffn_dim": ("encoder_ffn_embed_dim", 3072),
    "heads": ("encoder_attention_heads", 12),
    "layers": ("encoder_layers", 12),
    "pre_norm": ("layer_norm_first", False),
    "positional_kernel": ("conv_pos", 128),
    "positional_groups": ("conv_pos_groups", 16),
    "dropout": ("dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "input_dropout": ("dropout_input", 0.0),
    "layer_drop": ("encoder_layerdrop", 0.0),
    "feature_grad_mult": ("feature_grad_mult", 1.0),
}
# For models with the gated relative bias. 1280 is the class's default; the published models write 800.
_GATED_KEYS: dict[str, tuple[str, Any]] = {"num_buckets": ("num_buckets", 320), "max_distance": ("max_distance", 1280)}
# Values that this encoder implements, the classes' default first.
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "activation_fn": ("gelu",),
    "layer_type": ("transformer",),
    "conv_pos_batch_norm": (False,),
    "pos_conv_depth": (1,),
    "pos_enc_type": ("abs",),
    "quantize_input": (False,),
    "expand_attention_head_size": (-1, 0, None),
    "use_conformer": (False,),
    "extractor_mode": ("default", "layer_norm"),
}
_CONVOLUTIONS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
_NORMS = {"default": "group", "layer_norm": "layer"}
# Other keys of the released files: constants of WavLM, and masks, which only training reads.
_WRITTEN = {
    "activation_fn": "gelu",
    "dropout_features": 0.1,
    "mask_length": 10,
    "mask_prob": 0.8,
    "mask_selection": "static",
    "mask_other": 0.0,
    "no_mask_overlap": False,
    "mask_min_space": 1,
    "mask_channel_length": 10,
    "mask_channel_prob": 0.0,
    "mask_channel_selection": "static",
    "mask_channel_other": 0.0,
    "no_mask_channel_overlap": False,
    "mask_channel_min_space": 1,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "expand_attention_head_size": -1,
}


def read_fairseq_config(content: Mapping[str, Any], *, normalise_waveform: bool, origin: str) -> tuple[WavLMConfig, bool]:
    """Our configuration from the keys of a Microsoft or fairseq model; those of heads, masks and the loss are ignored.

    Returns:
        The configuration; True if the model has the gated relative bias (HuBERT and wav2vec 2.0 have none).

    Raises:
        ValueError: If `WavLMConfig` cannot represent the model or refuses its numbers.
    """
    gated, biased = (typed(content.get(key, False), False, key, origin) for key in ("gru_rel_pos", "relative_position_embedding"))
    if gated != biased:
        raise ValueError(f"gru_rel_pos and relative_position_embedding must both be on or both off, but only one is in {origin}")
    fields = read_fields(content, _KEYS | (_GATED_KEYS if gated else {}), _ALLOWED, origin)
    norm = _NORMS[content.get("extractor_mode", "default")]
    fields |= {"extractor_norm": norm, "normalise_waveform": normalise_waveform}
    fields |= _convolutions(content.get("conv_feature_layers", _CONVOLUTIONS), origin)
    return built(fields, origin), gated


def microsoft_config(config: WavLMConfig) -> dict[str, Any]:
    """The `cfg` of Microsoft's file, with every key of the released ones; a ValueError for a model without a waveform extractor."""
    check_conv_front_end(config, "Microsoft's")
    content = _WRITTEN | {key: getattr(config, field) for field, (key, _) in (_KEYS | _GATED_KEYS).items()}
    layers = list(zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True))
    published = layers == _convolution_list(_CONVOLUTIONS)
    content["conv_feature_layers"] = _CONVOLUTIONS if published else str(layers)
    content["extractor_mode"] = {ours: theirs for theirs, ours in _NORMS.items()}[config.extractor_norm]
    content["normalize"] = config.normalise_waveform
    return dict(sorted(content.items()))


def _convolutions(expression: Any, origin: str) -> dict[str, tuple[int, ...]]:
    try:
        layers = _convolution_list(expression) if isinstance(expression, str) else [tuple(layer) for layer in expression]
        dims, kernels, strides = zip(*layers, strict=True)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(
            f"conv_feature_layers must be a sum of lists of (channels, kernel, stride), but is {shown(expression)} in {origin}"
        ) from error
    return {"conv_dims": dims, "conv_kernels": kernels, "conv_strides": strides}


def _convolution_list(expression: str) -> list[tuple[int, ...]]:
    """Value of `[(512,10,5)] + [(512,3,2)] * 4`; their code runs it as Python, which would let a file run anything."""

    def value(node: ast.AST) -> Any:
        if isinstance(node, ast.Expression):
            return value(node.body)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return _few(value(node.left) + value(node.right))
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return _few(value(node.left) * min(int(value(node.right)), 64))
        if isinstance(node, ast.List):
            return [value(entry) for entry in node.elts]
        if isinstance(node, ast.Tuple):
            return tuple(value(entry) for entry in node.elts)
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        raise ValueError(f"unexpected {type(node).__name__}")

    return list(value(ast.parse(expression, mode="eval")))


def _few(value: Any) -> Any:
    """Refuses a list of more than 1000 layers: factors of factors would fill the memory."""
    if isinstance(value, list | tuple) and len(value) > 1000:
        raise ValueError(f"{len(value)} layers")
    return value
