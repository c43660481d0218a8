"""Hugging Face directories: `config.json`, `preprocessor_config.json`, `model.safetensors` (or an older `pytorch_model.bin`)."""

import json
import logging
import os
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from openwavlm.checkpoints.huggingface_config import huggingface_config, preprocessor_config, read_config
from openwavlm.models.wavlm import WavLM

logger = logging.getLogger(__name__)

# Our name → Hugging Face's, as prefixes; `{}` is a layer's number.
_PREFIXES = {
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
_SUFFIXES = ("", ".weight", ".bias", ".parametrizations.weight.original0", ".parametrizations.weight.original1")
_POSITIONAL = "encoder.pos_conv_embed.conv."
# torch.nn.utils.weight_norm wrote these names before parametrizations existed; Microsoft's files on the hub carry them.
_OLD_WEIGHT_NORM = {
    f"{_POSITIONAL}weight_g": f"{_POSITIONAL}parametrizations.weight.original0",
    f"{_POSITIONAL}weight_v": f"{_POSITIONAL}parametrizations.weight.original1",
}
# Beside `wavlm.`: what Hugging Face's fine-tuned classes, and the pre-training heads that some exports keep, add to the encoder.
_HEADS = ("lm_head", "classifier", "projector", "layer_weights", "tdnn", "feature_extractor", "objective")
_PRETRAINING_HEADS = ("final_proj", "label_embs_concat")


def huggingface_name(name: str) -> str:
    """Hugging Face's name of one of our parameters (`WavLMModel`, no prefix)."""
    number = re.search(r"(?<=layers\.)\d+", name)
    for suffix in _SUFFIXES:
        stem = name.removesuffix(suffix) if suffix else name
        pattern = re.sub(r"(?<=layers\.)\d+", "{}", stem)
        if name.endswith(suffix) and pattern in _PREFIXES:
            return _PREFIXES[pattern].format(number.group() if number else "") + suffix
    raise AssertionError(f"no Hugging Face name for {name}")


def huggingface_state(model: WavLM) -> dict[str, Tensor]:
    """The model's parameters under Hugging Face's names, on the CPU and contiguous."""
    return {huggingface_name(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def _is_head(name: str, *, prefixed: bool) -> bool:
    known = _HEADS + _PRETRAINING_HEADS if prefixed else _PRETRAINING_HEADS
    return name.split(".")[0] in known


def load_huggingface_state(model: WavLM, state: Mapping[str, Tensor], *, origin: str) -> list[str]:
    """Copies Hugging Face's tensors into the model; every tensor is used, is a head, or is refused.

    Args:
        model: The model, of the architecture that the tensors have.
        state: Tensors by name, with or without the `wavlm.` prefix, with either spelling of the weight norm.
        origin: Where they come from, for messages.

    Returns:
        Names of the tensors that were left out because they belong to a head.

    Raises:
        ValueError: If a tensor is unknown, missing, or has another shape than the configuration says.
    """
    prefixed = any(name.startswith("wavlm.") for name in state)
    names = {huggingface_name(name): name for name in model.state_dict()}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found: dict[str, Tensor] = {}
    heads: list[str] = []
    for name, tensor in state.items():
        if _is_head(name, prefixed=prefixed):
            heads.append(name)
            continue
        bare = name.removeprefix("wavlm.")
        ours = names.get(_OLD_WEIGHT_NORM.get(bare, bare)) if prefixed == name.startswith("wavlm.") else None
        if ours is None:
            raise ValueError(
                f"every tensor of a checkpoint must belong to the encoder or to a known head, but {origin} has {name}; if it is a "
                "head, remove it from the file, otherwise config.json describes another architecture"
            )
        if tensor.shape != shapes[ours]:
            raise ValueError(
                f"tensors must have the shapes that config.json implies, but {name} of {origin} has {tuple(tensor.shape)} instead "
                f"of {tuple(shapes[ours])}; use the config.json that was saved with the weights"
            )
        found[ours] = tensor.float()
    missing = sorted(huggingface_name(name) for name in shapes.keys() - found.keys())
    if missing:
        raise ValueError(
            f"a checkpoint must hold every tensor of the encoder, but {origin} lacks {len(missing)}, first {missing[0]}; "
            "save it again from the complete model (masked_spec_embed is only saved with mask_time_prob > 0)"
        )
    model.load_state_dict(found)
    return heads


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} must be JSON, but cannot be read ({error}); fetch or save it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds a {type(content).__name__}; fetch or save it again")
    return content


def _read_tensors(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    path = directory / "model.safetensors"
    if not path.is_file():
        path = directory / "pytorch_model.bin"
    if not path.is_file():
        raise ValueError(
            f"a Hugging Face directory must hold model.safetensors or pytorch_model.bin, but {directory} has neither; "
            "give the directory that save_pretrained or export wrote"
        )
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, IndexError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{path} must be a complete weights file, but cannot be read ({reason}); fetch or save it again"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{path} must hold tensors by name and nothing else, but does not; save the model's state dict alone")
    return path, state


def load_huggingface(directory: Path | str, *, normalise_waveform: bool | None = None) -> WavLM:
    """Reads a directory that Hugging Face's `save_pretrained`, the hub or `save_huggingface` wrote.

    Tensors of fine-tuning and pre-training heads are left out, since the encoder has no place for them, and are named in the log.

    Args:
        directory: The directory.
        normalise_waveform: Whether the model expects normalised waveforms; None = read it from `preprocessor_config.json`.

    Returns:
        The model in float32, on the CPU, in evaluation mode.

    Raises:
        ValueError: If a file is missing or cannot be read; if the configuration asks for something that WavLM's encoder is not; if
            a tensor is unknown, missing or of another shape.
    """
    directory = Path(directory)
    config_path = directory / "config.json"
    if directory.is_file():
        raise ValueError(
            f"a model is read from a Hugging Face directory, but {directory} is a file; Microsoft's and fairseq's .pt files cannot be "
            "read yet, their folders of the hub can (docs/checkpoints.md)"
        )
    if not config_path.is_file():
        raise ValueError(
            f"a Hugging Face directory must hold config.json, but {directory} has none; give the directory that save_pretrained "
            "or export wrote"
        )
    if normalise_waveform is None:
        preprocessor_path = directory / "preprocessor_config.json"
        do_normalize = _read_json(preprocessor_path).get("do_normalize") if preprocessor_path.is_file() else None
        if not isinstance(do_normalize, bool):
            raise ValueError(
                f"whether a model expects normalised waveforms must be known, but {directory} has no preprocessor_config.json with "
                "do_normalize; add one (false for WavLM Base and Base+, true for Large) or pass normalise_waveform"
            )
        normalise_waveform = do_normalize
    config = read_config(_read_json(config_path), normalise_waveform=normalise_waveform, origin=str(config_path))
    path, state = _read_tensors(directory)
    with torch.device("meta"):
        model = WavLM(config)
    heads = load_huggingface_state(model.to_empty(device="cpu"), state, origin=str(path))
    if heads:
        logger.warning("%s: left out %s: heads, for which the encoder has no place", path, ", ".join(heads))
    return model.eval()


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f"{path.name}.tmp")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def save_huggingface(model: WavLM, directory: Path | str, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a directory that `transformers.WavLMModel.from_pretrained` loads without missing or unexpected keys.

    Every file is written beside its place and renamed, the weights last; equal models give equal bytes.

    Args:
        model: The model; written in its own precision.
        directory: Where; made if it does not exist.
        metadata: Plain values to keep under `openwavlm` in `config.json` (run, step, fingerprints); readers ignore them.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = huggingface_config(model.config) | {"dtype": str(model.mask_embedding.dtype).removeprefix("torch.")}
    if metadata:
        config["openwavlm"] = dict(metadata)
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor_config(model.config))):
        _write(directory / name, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    # A second metadata key would be written in hash order: not reproducible.
    _write(directory / "model.safetensors", save(huggingface_state(model), metadata={"format": "pt"}))
