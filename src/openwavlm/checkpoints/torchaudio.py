"""State dicts of torchaudio's models, with a JSON file beside them for the rest of the configuration.

NAME.pt     the state dict of torchaudio.models.wavlm_model, hubert_… or wav2vec2_…
NAME.json   arguments of that function, normalize_waveform, and in our exports mask_embedding, which torchaudio's WavLM lacks
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openwavlm.checkpoints.account import FINE_TUNED_HEAD, PREDICTION_HEAD, Loaded, fill
from openwavlm.checkpoints.names import new_spelling, old_spelling, prefix_of, torchaudio_name
from openwavlm.checkpoints.values import check_conv_front_end, check_tensors, saved, shown
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.runtime.files import read_json

# Our field → the argument of torchaudio's functions.
_ARGUMENTS = {
    "conv_bias": "extractor_conv_bias",
    "dim": "encoder_embed_dim",
    "ffn_dim": "encoder_ff_interm_features",
    "heads": "encoder_num_heads",
    "layers": "encoder_num_layers",
    "pre_norm": "encoder_layer_norm_first",
    "positional_kernel": "encoder_pos_conv_kernel",
    "positional_groups": "encoder_pos_conv_groups",
    "num_buckets": "encoder_num_buckets",
    "max_distance": "encoder_max_distance",
    "input_dropout": "encoder_projection_dropout",
    "attention_dropout": "encoder_attention_dropout",
    "activation_dropout": "encoder_ff_interm_dropout",
    "dropout": "encoder_dropout",
    "layer_drop": "encoder_layer_drop",
}
_MASK = "mask_generator.mask_embedding"
_NORMS = {"group_norm": "group", "layer_norm": "layer"}
_STRIDES = (5, 2, 2, 2, 2, 2, 2)
_PREFIXES = ("wav2vec2.", "model.")
_HEADS = {"logit_generator": PREDICTION_HEAD, "aux": FINE_TUNED_HEAD}


def is_torchaudio(content: Any) -> bool:
    """True if a file's content is a state dict with torchaudio's names."""
    return isinstance(content, dict) and any(str(name).endswith("encoder.transformer.layer_norm.weight") for name in content)


def sidecar_of(path: Path) -> Path:
    """The JSON file that belongs to a file of tensors."""
    return path.with_suffix(".json")


def load_torchaudio(state: Mapping[str, Any], *, origin: Path, normalise_waveform: bool | None = None) -> Loaded:
    """Builds the encoder of a state dict; the numbers come from its shapes, the rest from the JSON file beside `origin`.

    Raises:
        ValueError: If the content is not tensors alone; if the JSON file is missing, damaged or incomplete; as `fill` does.
    """
    check_tensors(state, str(origin))
    prefix = prefix_of(state, _PREFIXES)
    bare = {new_spelling(name.removeprefix(prefix)): tensor for name, tensor in state.items()}
    gated = any(name.endswith("rel_attn_embed.weight") for name in bare)
    fused = any(name.endswith("in_proj_weight") for name in bare)
    sidecar = _read_sidecar(origin, gated=gated, normalise_waveform=normalise_waveform)
    mask = sidecar.get("mask_embedding")
    if mask is not None:
        if not isinstance(mask, list) or not all(type(value) in (int, float) for value in mask):
            raise ValueError(f"mask_embedding must be a list of numbers, but is {shown(mask)} in {sidecar_of(origin)}")
        state = {_MASK: torch.tensor(mask, dtype=torch.float32), **state}
    config = _config(bare, sidecar, origin, normalise_waveform=normalise_waveform)
    return fill(
        config,
        state,
        dialect="torchaudio",
        origin=str(origin),
        name_of=lambda name: torchaudio_name(name, fused=fused),
        reason_of=lambda name: _HEADS.get(name.removeprefix(prefix).split(".")[0]),
        prefix=prefix,
        unprefixed=(_MASK,),
        gated=gated,
        may_lack_mask=True,
    )


def torchaudio_bytes(model: WavLM) -> tuple[bytes, bytes]:
    """Bytes of the state dict, which `torchaudio.models.wavlm_model(**arguments)` loads strictly, and of the JSON file.

    A model without a waveform extractor is a ValueError.
    """
    config = model.config
    check_conv_front_end(config, "torchaudio's")
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if name == "mask_embedding":  # its WavLM lacks it: the JSON file holds it
            continue
        theirs = old_spelling(torchaudio_name(name, fused=True))  # every torchaudio reads the old one
        part = tensor.detach().float().cpu()
        state[theirs] = torch.cat([state[theirs], part]) if theirs in state else part.contiguous()
    sidecar: dict[str, Any] = {theirs: getattr(config, ours) for ours, theirs in _ARGUMENTS.items()}
    sidecar |= {
        "extractor_mode": f"{config.extractor_norm}_norm",
        "extractor_conv_layer_config": list(zip(config.conv_dims, config.conv_kernels, config.conv_strides, strict=True)),
        "aux_num_out": None,
        "normalize_waveform": config.normalise_waveform,
        "mask_embedding": model.mask_embedding.detach().float().cpu().tolist(),
    }
    return saved(state), (json.dumps(sidecar, sort_keys=True) + "\n").encode()


def _read_sidecar(origin: Path, *, gated: bool, normalise_waveform: bool | None) -> dict[str, Any]:
    path = sidecar_of(origin)
    needed: dict[str, type] = {"encoder_layer_norm_first": bool}
    needed |= {"encoder_max_distance": int} if gated else {"encoder_num_heads": int}
    needed |= {"normalize_waveform": bool} if normalise_waveform is None else {}
    sidecar = read_json(path, remedy="write it again").values if path.exists() else {}
    missing = [name for name, kind in needed.items() if type(sidecar.get(name)) is not kind]
    if missing:
        state = "lacks them" if path.is_file() else "is missing"
        raise ValueError(
            f"torchaudio's tensors lack {', '.join(missing)}, which {path} must have, but it {state}; write it as JSON, for a bundle "
            "{**bundle._params, 'normalize_waveform': bundle._normalize_waveform}"
        )
    return sidecar


def _config(
    state: Mapping[str, Tensor], sidecar: Mapping[str, Any], origin: Path, *, normalise_waveform: bool | None
) -> WavLMConfig:
    """The configuration from the JSON file, the rest from the shapes (which `fill` compares with it)."""
    try:
        fields = _from_shapes(state)
        fields |= {ours: sidecar[theirs] for ours, theirs in _ARGUMENTS.items() if sidecar.get(theirs) is not None}
        if "extractor_mode" in sidecar:
            fields["extractor_norm"] = _NORMS[sidecar["extractor_mode"]]
        if sidecar.get("extractor_conv_layer_config"):
            dims, kernels, strides = zip(*sidecar["extractor_conv_layer_config"], strict=True)
            fields |= {"conv_dims": dims, "conv_kernels": kernels, "conv_strides": strides}
        normalise = sidecar["normalize_waveform"] if normalise_waveform is None else normalise_waveform
        return WavLMConfig(**fields, normalise_waveform=normalise)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(
            f"{origin} and {sidecar_of(origin).name} must describe an encoder of WavLM's family, but {error}; correct the JSON file"
        ) from error


def _from_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    layers = "encoder.transformer.layers."
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    names = [f"feature_extractor.conv_layers.{number}.conv.weight" for number in range(len(shapes))]
    kernels = [shapes[name] for name in names if name in shapes]
    positional = shapes["encoder.transformer.pos_conv_embed.conv.parametrizations.weight.original1"]
    fields: dict[str, Any] = {
        "conv_dims": tuple(shape[0] for shape in kernels),
        "conv_kernels": tuple(shape[2] for shape in kernels),
        "conv_strides": _STRIDES,
        "conv_bias": "feature_extractor.conv_layers.0.conv.bias" in shapes,
        "extractor_norm": "layer" if "feature_extractor.conv_layers.1.layer_norm.weight" in shapes else "group",
        "dim": positional[0],
        "ffn_dim": shapes[f"{layers}0.feed_forward.intermediate_dense.weight"][0],
        "layers": len({match[1] for name in shapes if (match := re.match(rf"{re.escape(layers)}(\d+)\.", name))}),
        "positional_kernel": positional[2],
        "positional_groups": positional[0] // positional[1],
    }
    table = shapes.get(f"{layers}0.attention.rel_attn_embed.weight")
    return fields | ({"num_buckets": table[0], "heads": table[1]} if table else {})
