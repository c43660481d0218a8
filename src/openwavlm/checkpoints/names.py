"""Names of the encoder's tensors: ours, Hugging Face's, fairseq's (also Microsoft's) and torchaudio's."""

import re
from collections.abc import Iterable, Mapping
from typing import Literal

# Ours → theirs, as prefixes; `{}` is a layer's number.
_HUGGINGFACE = {
    "mask_embedding": "masked_spec_embed",
    "extractor.layers.{}.conv": "feature_extractor.conv_layers.{}.conv",
    "extractor.layers.{}.norm": "feature_extractor.conv_layers.{}.layer_norm",
    "feature_norm": "feature_projection.layer_norm",
    "projection": "feature_projection.projection",
    "encoder.positional.conv": "encoder.pos_conv_embed.conv",
    "encoder.norm": "encoder.layer_norm",
    "encoder.relative_bias.embedding": "encoder.layers.0.attention.rel_attn_embed",
    "encoder.layers.{}.attention.query": "encoder.layers.{}.attention.q_proj",
    "encoder.layers.{}.attention.key": "encoder.layers.{}.attention.k_proj",
    "encoder.layers.{}.attention.value": "encoder.layers.{}.attention.v_proj",
    "encoder.layers.{}.attention.output": "encoder.layers.{}.attention.out_proj",
    "encoder.layers.{}.attention.gate": "encoder.layers.{}.attention.gru_rel_pos_linear",
    "encoder.layers.{}.attention.gate_scale": "encoder.layers.{}.attention.gru_rel_pos_const",
    "encoder.layers.{}.attention_norm": "encoder.layers.{}.layer_norm",
    "encoder.layers.{}.feed_forward.expand": "encoder.layers.{}.feed_forward.intermediate_dense",
    "encoder.layers.{}.feed_forward.contract": "encoder.layers.{}.feed_forward.output_dense",
    "encoder.layers.{}.feed_forward_norm": "encoder.layers.{}.final_layer_norm",
}
_FAIRSEQ = {
    "mask_embedding": "mask_emb",
    "extractor.layers.{}.conv": "feature_extractor.conv_layers.{}.0",
    "feature_norm": "layer_norm",
    "projection": "post_extract_proj",
    "encoder.positional.conv": "encoder.pos_conv.0",
    "encoder.norm": "encoder.layer_norm",
    "encoder.relative_bias.embedding": "encoder.layers.0.self_attn.relative_attention_bias",
    "encoder.layers.{}.attention.query": "encoder.layers.{}.self_attn.q_proj",
    "encoder.layers.{}.attention.key": "encoder.layers.{}.self_attn.k_proj",
    "encoder.layers.{}.attention.value": "encoder.layers.{}.self_attn.v_proj",
    "encoder.layers.{}.attention.output": "encoder.layers.{}.self_attn.out_proj",
    "encoder.layers.{}.attention.gate": "encoder.layers.{}.self_attn.grep_linear",
    "encoder.layers.{}.attention.gate_scale": "encoder.layers.{}.self_attn.grep_a",
    "encoder.layers.{}.attention_norm": "encoder.layers.{}.self_attn_layer_norm",
    "encoder.layers.{}.feed_forward.expand": "encoder.layers.{}.fc1",
    "encoder.layers.{}.feed_forward.contract": "encoder.layers.{}.fc2",
    "encoder.layers.{}.feed_forward_norm": "encoder.layers.{}.final_layer_norm",
}
# An index of a Sequential: the layer norm stands between two transpositions, the group norm alone.
_FAIRSEQ_NORM = {"group": "feature_extractor.conv_layers.{}.2", "layer": "feature_extractor.conv_layers.{}.2.1"}
_SUFFIXES = ("", ".weight", ".bias", ".parametrizations.weight.original0", ".parametrizations.weight.original1")
# torch.nn.utils.weight_norm wrote the old names before parametrizations existed; most published files have them.
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def _renamed(name: str, prefixes: Mapping[str, str]) -> str:
    number = re.search(r"(?<=layers\.)\d+", name)
    for suffix in _SUFFIXES:
        stem = name.removesuffix(suffix) if suffix else name
        pattern = re.sub(r"(?<=layers\.)\d+", "{}", stem)
        if name.endswith(suffix) and pattern in prefixes:
            return prefixes[pattern].format(number.group() if number else "") + suffix
    raise AssertionError(f"no other name for {name}")


def huggingface_name(name: str) -> str:
    """Hugging Face's name of one of our parameters (`WavLMModel`, no prefix)."""
    return _renamed(name, _HUGGINGFACE)


def fairseq_name(name: str, *, extractor_norm: Literal["group", "layer"]) -> str:
    """Microsoft's and fairseq's name of one of our parameters, with the weight norm in today's spelling."""
    return _renamed(name, _FAIRSEQ | {"extractor.layers.{}.norm": _FAIRSEQ_NORM[extractor_norm]})


def torchaudio_name(name: str, *, fused: bool) -> str:
    """torchaudio's name of one of our parameters.

    Args:
        name: Ours.
        fused: Whether query, key and value are one tensor (its WavLM) or three (its HuBERT and wav2vec 2.0).
    """
    if name == "mask_embedding":
        return "mask_generator.mask_embedding"
    theirs = _renamed(name, _HUGGINGFACE)
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
