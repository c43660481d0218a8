"""Names of the encoder's tensors: ours, Hugging Face's, fairseq's (also Microsoft's) and torchaudio's."""

import re
from collections.abc import Iterable
from typing import Literal

# Ours → Hugging Face's and fairseq's, as prefixes; `{}` is a layer's number.
_NAMES = {
    "mask_embedding": ("masked_spec_embed", "mask_emb"),
    "extractor.layers.{}.conv": ("feature_extractor.conv_layers.{}.conv", "feature_extractor.conv_layers.{}.0"),
    "extractor.layers.{}.norm": ("feature_extractor.conv_layers.{}.layer_norm", "feature_extractor.conv_layers.{}.2"),
    "feature_norm": ("feature_projection.layer_norm", "layer_norm"),
    "projection": ("feature_projection.projection", "post_extract_proj"),
    "encoder.positional.conv": ("encoder.pos_conv_embed.conv", "encoder.pos_conv.0"),
    "encoder.norm": ("encoder.layer_norm", "encoder.layer_norm"),
    "encoder.relative_bias.embedding": (
        "encoder.layers.0.attention.rel_attn_embed",
        "encoder.layers.0.self_attn.relative_attention_bias",
    ),
}
_LAYER_NAMES = {
    "attention.query": ("attention.q_proj", "self_attn.q_proj"),
    "attention.key": ("attention.k_proj", "self_attn.k_proj"),
    "attention.value": ("attention.v_proj", "self_attn.v_proj"),
    "attention.output": ("attention.out_proj", "self_attn.out_proj"),
    "attention.gate": ("attention.gru_rel_pos_linear", "self_attn.grep_linear"),
    "attention.gate_scale": ("attention.gru_rel_pos_const", "self_attn.grep_a"),
    "attention_norm": ("layer_norm", "self_attn_layer_norm"),
    "feed_forward.expand": ("feed_forward.intermediate_dense", "fc1"),
    "feed_forward.contract": ("feed_forward.output_dense", "fc2"),
    "feed_forward_norm": ("final_layer_norm", "final_layer_norm"),
}
_LAYER = "encoder.layers.{}."
_NAMES |= {_LAYER + ours: (_LAYER + first, _LAYER + second) for ours, (first, second) in _LAYER_NAMES.items()}
_SUFFIXES = ("", ".weight", ".bias", ".parametrizations.weight.original0", ".parametrizations.weight.original1")
# torch.nn.utils.weight_norm wrote the old names before parametrizations existed; most published files have them.
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def _renamed(name: str, column: int) -> str:
    number = re.search(r"(?<=layers\.)\d+", name)
    pattern = re.sub(r"(?<=layers\.)\d+", "{}", name)
    suffix = next(suffix for suffix in _SUFFIXES if pattern.endswith(suffix) and pattern.removesuffix(suffix) in _NAMES)
    return _NAMES[pattern.removesuffix(suffix)][column].format(number.group() if number else "") + suffix


def huggingface_name(name: str) -> str:
    """Hugging Face's name of one of our parameters (`WavLMModel`, no prefix)."""
    return _renamed(name, 0)


def fairseq_name(name: str, *, extractor_norm: Literal["group", "layer"]) -> str:
    """Microsoft's and fairseq's name of one of our parameters, with the weight norm in today's spelling."""
    theirs = _renamed(name, 1)
    # In their Sequential the layer norm stands between two transpositions, the group norm alone.
    return re.sub(r"(conv_layers\.\d+\.2)\.", r"\1.1.", theirs) if extractor_norm == "layer" else theirs


def torchaudio_name(name: str, *, fused: bool) -> str:
    """torchaudio's name of one of our parameters; `fused` if query, key and value are one tensor, as in its WavLM."""
    if name == "mask_embedding":
        return "mask_generator.mask_embedding"
    theirs = huggingface_name(name)
    theirs = re.sub(r"^feature_projection", "encoder.feature_projection", theirs)
    theirs = re.sub(r"^encoder\.(?=layer|pos_conv)", "encoder.transformer.", theirs)
    if fused:
        theirs = re.sub(r"attention\.[qkv]_proj\.(\w+)$", r"attention.attention.in_proj_\1", theirs)
        theirs = theirs.replace("attention.out_proj", "attention.attention.out_proj")
    return theirs


def new_spelling(name: str) -> str:
    """A tensor's name with the weight norm as today's torch spells it."""
    stem, _, last = name.rpartition(".")
    return f"{stem}.{_WEIGHT_NORM[last]}" if last in _WEIGHT_NORM else name


def old_spelling(name: str) -> str:
    """A tensor's name with the weight norm as files from before torch 2.0 spell it, which today's torch still reads."""
    for old, new in _WEIGHT_NORM.items():
        if name.endswith(f".{new}"):
            return name.removesuffix(new) + old
    return name


def prefix_of(names: Iterable[str], prefixes: Iterable[str]) -> str:
    """Prefix of the encoder's tensors in a file (`wavlm.`, `w2v_encoder.w2v_model.`, …); empty for none."""
    names = list(names)
    return next((prefix for prefix in prefixes if any(name.startswith(prefix) for name in names)), "")
