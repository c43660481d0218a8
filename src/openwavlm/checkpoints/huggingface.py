"""Hugging Face directories: `config.json`, `preprocessor_config.json`, and weights (`huggingface_weights`)."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from openwavlm.checkpoints.account import FINE_TUNED_HEAD, PREDICTION_HEAD, QUANTISER, Loaded, fill
from openwavlm.checkpoints.huggingface_config import huggingface_config, preprocessor_config, read_config
from openwavlm.checkpoints.huggingface_weights import AGAIN, read_weights
from openwavlm.checkpoints.names import huggingface_name, prefix_of
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.runtime.atomic import write_atomically
from openwavlm.runtime.files import read_json

_PREFIXES = ("wavlm.", "hubert.", "wav2vec2.")
# Tensors that Hugging Face's classes for fine-tuning and pre-training add to the prefixed encoder.
_HEADS = dict.fromkeys(
    ("lm_head", "classifier", "projector", "layer_weights", "tdnn", "objective"), FINE_TUNED_HEAD
) | dict.fromkeys(("quantizer", "project_q", "project_hid"), QUANTISER)
_XVECTOR = dict.fromkeys(("feature_extractor.weight", "feature_extractor.bias"), FINE_TUNED_HEAD)
_PRETRAINING_HEADS = dict.fromkeys(("final_proj", "label_embs_concat"), PREDICTION_HEAD)


def huggingface_state(model: WavLM) -> dict[str, Tensor]:
    """The model's parameters under Hugging Face's names, on the CPU and contiguous."""
    return {huggingface_name(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def load_huggingface_state(config: WavLMConfig, state: Mapping[str, Tensor], *, origin: str, kind: str = "wavlm") -> Loaded:
    """Builds a model from Hugging Face's tensors; every tensor is used, is part of a head, or is refused.

    Args:
        config: The architecture of the tensors.
        state: Tensors by name, with or without the `wavlm.` prefix, with either spelling of the weight norm.
        origin: Their source, for messages.
        kind: `wavlm`, or `hubert` or `wav2vec2`, which get a neutral gated bias.

    Raises:
        ValueError: As `fill` does.
    """
    prefix = prefix_of(state, _PREFIXES)
    heads = _PRETRAINING_HEADS | (_HEADS | _XVECTOR if prefix else {})
    return fill(
        config,
        state,
        dialect=f"Hugging Face, {kind}",
        origin=origin,
        name_of=huggingface_name,
        reason_of=lambda name: heads.get(name, heads.get(name.split(".")[0])),
        prefix=prefix,
        gated=kind == "wavlm",
        # Hugging Face's classes have a mask embedding only where their fine-tuning masks (mask_time_prob, mask_feature_prob).
        may_lack_mask=True,
    )


def load_huggingface(directory: Path | str, *, normalise_waveform: bool | None = None) -> Loaded:
    """Reads a directory of a WavLM, HuBERT or wav2vec 2.0 that `save_pretrained`, the hub or `save_huggingface` wrote.

    Tensors of heads for fine-tuning and pre-training are left out and named in the log.

    Args:
        directory: The directory.
        normalise_waveform: Whether the model expects normalised waveforms; None = as its preprocessor or processor says.

    Raises:
        ValueError: If a file is missing or unreadable; if WavLM's encoder cannot represent the configuration; if a tensor is unknown,
            missing or of another shape.
    """
    directory = Path(directory)
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise ValueError(
            f"a Hugging Face directory must hold config.json, but {directory} has none; give the directory that save_pretrained "
            "or export wrote"
        )
    if normalise_waveform is None:
        normalise_waveform = _normalises(directory)
    content = read_json(config_path, remedy=AGAIN).values
    config = read_config(content, normalise_waveform=normalise_waveform, origin=str(config_path))
    path, state = read_weights(directory)
    try:
        return load_huggingface_state(config, state, origin=str(path), kind=str(content["model_type"]))
    except ValueError as error:
        raise ValueError(f"{config_path.name} and {path.name} of {directory} do not fit: {error}") from error


def _normalises(directory: Path) -> bool:
    """`do_normalize` of the feature extractor; with a tokenizer, Transformers 5 writes it into the processor's file."""
    values: list[Any] = []
    if (path := directory / "preprocessor_config.json").is_file():
        values.append(read_json(path, remedy=AGAIN).values.get("do_normalize"))
    if (path := directory / "processor_config.json").is_file():
        extractor = read_json(path, remedy=AGAIN).values.get("feature_extractor")
        values.append(extractor.get("do_normalize") if isinstance(extractor, dict) else None)
    found = {value for value in values if isinstance(value, bool)}
    if len(found) != 1:
        raise ValueError(
            f"whether a model expects normalised waveforms must be known, but {directory} "
            + ("has both in" if found else "has it neither in")
            + " preprocessor_config.json (do_normalize) and processor_config.json (do_normalize of feature_extractor); add it as the model "
            "was trained (published Base models false, Large ones true), or pass normalise_waveform"
        )
    return found.pop()


def save_huggingface(model: WavLM, directory: Path | str, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a directory that `transformers.WavLMModel.from_pretrained` loads without missing or unexpected keys.

    Files are written atomically, the weights last; equal models give equal bytes.

    Args:
        model: The model; written in its own precision.
        directory: Made if it does not exist.
        metadata: Plain values to keep under `openwavlm` in `config.json` (run, step, fingerprints); readers ignore them.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = huggingface_config(model.config) | {"dtype": str(model.mask_embedding.dtype).removeprefix("torch.")}
    if metadata:
        config["openwavlm"] = dict(metadata)
    for name, content in (("config.json", config), ("preprocessor_config.json", preprocessor_config(model.config))):
        write_atomically(directory / name, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
    # A second metadata key would be written in hash order: not reproducible.
    write_atomically(directory / "model.safetensors", save(huggingface_state(model), metadata={"format": "pt"}))
