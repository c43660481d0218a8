"""Hugging Face directories: `config.json`, `preprocessor_config.json`, and weights in one file, or in several with an index.

model.safetensors                 or  model.safetensors.index.json   and  model-00001-of-00002.safetensors, …
pytorch_model.bin                 or  pytorch_model.bin.index.json   and  pytorch_model-00001-of-00002.bin, …
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save
from torch import Tensor

from openwavlm.checkpoints.account import FINE_TUNED_HEAD, PREDICTION_HEAD, QUANTISER_HEADS, Loaded, fill
from openwavlm.checkpoints.huggingface_config import huggingface_config, preprocessor_config, read_config
from openwavlm.checkpoints.names import huggingface_name, prefix_of
from openwavlm.checkpoints.pickles import read_pickle
from openwavlm.checkpoints.values import check_is_weights, check_tensors, unreadable
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from openwavlm.runtime.atomic import write_atomically
from openwavlm.runtime.files import read_json
from openwavlm.runtime.resources import check_of_the_file, read_again

_AGAIN = "fetch or save it again"
_WHOLE = ("model.safetensors", "pytorch_model.bin")
# As transformers: safetensors before pickles, one file before several.
_CANDIDATES = tuple(candidate for name in _WHOLE for candidate in (name, f"{name}.index.json"))
_PARTS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")
_PREFIXES = ("wavlm.", "hubert.", "wav2vec2.")
# Tensors that Hugging Face's classes for fine-tuning and pre-training add to the prefixed encoder.
_FINE_TUNED = ("lm_head", "classifier", "projector", "layer_weights", "tdnn", "objective")
_XVECTOR = ("feature_extractor.weight", "feature_extractor.bias")
_HEADS = dict.fromkeys(_FINE_TUNED + _XVECTOR, FINE_TUNED_HEAD) | QUANTISER_HEADS
_PRETRAINING_HEADS = dict.fromkeys(("final_proj", "label_embs_concat"), PREDICTION_HEAD)


def huggingface_state(model: WavLM) -> dict[str, Tensor]:
    """The model's parameters under Hugging Face's names, on the CPU and contiguous."""
    return {huggingface_name(name): tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}


def load_huggingface_state(config: WavLMConfig, state: Mapping[str, Tensor], *, origin: str, kind: str = "wavlm") -> Loaded:
    """Builds a model from Hugging Face's tensors, as `fill` does.

    Args:
        config: The architecture of the tensors.
        state: Tensors by name, with or without the `wavlm.` prefix, with either spelling of the weight norm.
        origin: Their source, for messages.
        kind: `wavlm`, or `hubert` or `wav2vec2`, which get a neutral gated bias.
    """
    prefix = prefix_of(state, _PREFIXES)
    heads = _PRETRAINING_HEADS | (_HEADS if prefix else {})
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

    Arguments and errors as for `load.load_checkpoint`.
    """
    directory = Path(directory)
    config_path = directory / "config.json"
    if not config_path.is_file():
        raise ValueError(
            f"a directory must hold config.json, but {directory} has none; give what save_pretrained or export wrote"
        )
    if normalise_waveform is None:
        normalise_waveform = _normalises(directory)
    content = read_json(config_path, remedy=_AGAIN).values
    config = read_config(content, normalise_waveform=normalise_waveform, origin=str(config_path))
    path, state = _read_weights(directory)
    try:
        return load_huggingface_state(config, state, origin=str(path), kind=str(content["model_type"]))
    except ValueError as error:
        raise ValueError(f"{config_path.name} and {path.name} of {directory} do not fit: {error}") from error


def _normalises(directory: Path) -> bool:
    """`do_normalize` of the feature extractor; with a tokenizer, Transformers 5 writes it into the processor's file."""
    values: list[Any] = []
    if (path := directory / "preprocessor_config.json").is_file():
        values.append(read_json(path, remedy=_AGAIN).values.get("do_normalize"))
    if (path := directory / "processor_config.json").is_file():
        extractor = read_json(path, remedy=_AGAIN).values.get("feature_extractor")
        values.append(extractor.get("do_normalize") if isinstance(extractor, dict) else None)
    found = {value for value in values if isinstance(value, bool)}
    if len(found) != 1:
        raise ValueError(
            f"do_normalize must be true or false in preprocessor_config.json, or under feature_extractor in processor_config.json, but "
            f"{directory} has {'two values' if found else 'no value'}; write it as in training (published Base models: false, Large: true) "
            "or pass normalise_waveform"
        )
    return found.pop()


def weights_files(directory: Path) -> list[Path]:
    """Possible weights files of a directory: whole files and indices, and existing parts."""
    parts = [part for pattern in _PARTS for part in sorted(directory.glob(pattern))]
    return [*(directory / name for name in _CANDIDATES), *parts]


def _read_weights(directory: Path) -> tuple[Path, dict[str, Tensor]]:
    """Path of the whole file or of the index of a directory, and the tensors by name, on the CPU."""
    path = next((directory / name for name in _CANDIDATES if (directory / name).is_file()), None)
    if path is None:
        raise ValueError(
            f"a directory must hold model.safetensors or pytorch_model.bin, or one of them in parts with its .index.json, but "
            f"{directory} has none of these; give what save_pretrained or export wrote"
        )
    return path, _read_parts(path) if path.suffix == ".json" else read_tensors(path)


def _read_parts(index: Path) -> dict[str, Tensor]:
    file_of = read_json(index, remedy=_AGAIN).values.get("weight_map")
    # A name with a folder in it could lead anywhere.
    if not isinstance(file_of, dict) or not all(isinstance(file, str) and Path(file).name == file for file in file_of.values()):
        raise ValueError(f"{index} must name the file of each tensor under weight_map, but does not; {_AGAIN}")
    state: dict[str, Tensor] = {}
    for name in sorted(set(file_of.values())):
        part = index.parent / name
        if not part.is_file():
            raise ValueError(f"every file that {index} names must be beside it, but {name} is missing; fetch it too")
        held = read_tensors(part)
        expected = {tensor for tensor, file in file_of.items() if file == name}
        if held.keys() != expected:
            wrong = min(held.keys() ^ expected)
            raise ValueError(
                f"{part} must hold the tensors that {index.name} says, but {wrong} is in only one of them; fetch or save both again"
            )
        state |= held
    return state


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of one file, a pickle if its name ends in .bin, else safetensors; raises a `ValueError` if it cannot be read."""
    if path.suffix == ".bin":
        state = read_pickle(path, tensors_alone=True)
    else:
        check_is_weights(path)
        try:
            state = read_again(lambda: load_file(path), path)
        except Exception as error:  # safetensors has errors of many kinds for a damaged header
            check_of_the_file(error, path)
            raise unreadable(path, error) from error
    check_tensors(state, str(path))
    return state


def save_huggingface(model: WavLM, directory: Path | str, *, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes a directory that `transformers.WavLMModel.from_pretrained` loads without missing or unexpected keys.

    Files are written atomically, the weights last and in the model's precision; equal models give equal bytes.

    Args:
        model: The model.
        directory: Created if missing.
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
