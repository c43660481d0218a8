"""Single-file checkpoints: the layouts of Microsoft and fairseq by their key tables (SPEC §6), and pickles that are read as data."""

import argparse
import gzip
import io
import json
import os
import pickle
import random
import re
import sys
import tarfile
import types
import zipfile
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple  # noqa: UP035

import numpy as np
import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf, open_dict
from safetensors.torch import load_file, save_file
from torch import Tensor

import openwavlm
from openwavlm.checkpoints.account import FINE_TUNED_HEAD, NO_GATED_BIAS, PREDICTION_HEAD, QUANTISER, TRAINING_STATE
from openwavlm.checkpoints.fairseq import microsoft_bytes
from openwavlm.checkpoints.fairseq_config import _convolution_list, microsoft_config, read_fairseq_config
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.checkpoints.names import fairseq_name, old_spelling
from openwavlm.checkpoints.pickles import read_pickle
from openwavlm.checkpoints.torchaudio import torchaudio_bytes
from openwavlm.labels.teacher import model_hash, open_teacher
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM

TINY = WavLMConfig(
    conv_dims=(8,) * 7,
    dim=32,
    ffn_dim=48,
    heads=4,
    layers=2,
    positional_kernel=8,
    positional_groups=2,
    num_buckets=32,
    max_distance=80,
)
PRE_NORM = replace(TINY, pre_norm=True, extractor_norm="layer", normalise_waveform=True)
LARGE = WavLMConfig(
    extractor_norm="layer", dim=1024, ffn_dim=4096, heads=16, layers=24, pre_norm=True, dropout=0, normalise_waveform=True
)
# cfg of the released Base file, by SPEC §6.1.
KEYS_OF_MICROSOFT = [
    "extractor_mode",
    "encoder_layers",
    "encoder_embed_dim",
    "encoder_ffn_embed_dim",
    "encoder_attention_heads",
    "activation_fn",
    "dropout",
    "attention_dropout",
    "activation_dropout",
    "encoder_layerdrop",
    "dropout_input",
    "dropout_features",
    "layer_norm_first",
    "conv_feature_layers",
    "conv_bias",
    "feature_grad_mult",
    "mask_length",
    "mask_prob",
    "mask_selection",
    "mask_other",
    "no_mask_overlap",
    "mask_min_space",
    "mask_channel_length",
    "mask_channel_prob",
    "mask_channel_selection",
    "mask_channel_other",
    "no_mask_channel_overlap",
    "mask_channel_min_space",
    "conv_pos",
    "conv_pos_groups",
    "relative_position_embedding",
    "num_buckets",
    "max_distance",
    "gru_rel_pos",
    "expand_attention_head_size",
    "normalize",
]


def key_table(config: WavLMConfig, *, gated: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of fairseq's tensors, written down from SPEC §6.1 and not from our names."""
    dim, ffn, heads = config.dim, config.ffn_dim, config.heads
    table: dict[str, tuple[int, ...]] = {"mask_emb": (dim,)}
    channels = 1
    for number, (width, kernel) in enumerate(zip(config.conv_dims, config.conv_kernels, strict=True)):
        table[f"feature_extractor.conv_layers.{number}.0.weight"] = (width, channels, kernel)
        channels = width
        norm = "2.1" if config.extractor_norm == "layer" else "2"
        if config.extractor_norm == "layer" or number == 0:
            table |= {f"feature_extractor.conv_layers.{number}.{norm}.{kind}": (width,) for kind in ("weight", "bias")}
    table |= {"post_extract_proj.weight": (dim, channels), "post_extract_proj.bias": (dim,)}
    table |= {"layer_norm.weight": (channels,), "layer_norm.bias": (channels,)}
    table |= {"encoder.pos_conv.0.bias": (dim,), "encoder.pos_conv.0.weight_g": (1, 1, config.positional_kernel)}
    table |= {"encoder.pos_conv.0.weight_v": (dim, dim // config.positional_groups, config.positional_kernel)}
    table |= {"encoder.layer_norm.weight": (dim,), "encoder.layer_norm.bias": (dim,)}
    for number in range(config.layers):
        layer = f"encoder.layers.{number}."
        for part in "qkv":
            table |= {f"{layer}self_attn.{part}_proj.weight": (dim, dim), f"{layer}self_attn.{part}_proj.bias": (dim,)}
        table |= {f"{layer}self_attn.out_proj.weight": (dim, dim), f"{layer}self_attn.out_proj.bias": (dim,)}
        if gated:
            table |= {f"{layer}self_attn.grep_linear.weight": (8, dim // heads), f"{layer}self_attn.grep_linear.bias": (8,)}
            table[f"{layer}self_attn.grep_a"] = (1, heads, 1, 1)
        for norm in ("self_attn_layer_norm", "final_layer_norm"):
            table |= {f"{layer}{norm}.weight": (dim,), f"{layer}{norm}.bias": (dim,)}
        table |= {f"{layer}fc1.weight": (ffn, dim), f"{layer}fc1.bias": (ffn,)}
        table |= {f"{layer}fc2.weight": (dim, ffn), f"{layer}fc2.bias": (dim,)}
    if gated:
        table["encoder.layers.0.self_attn.relative_attention_bias.weight"] = (config.num_buckets, heads)
    return table


def random_state(config: WavLMConfig, *, gated: bool = True) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in key_table(config, gated=gated).items()}


def keys_of(config: WavLMConfig, *, gated: bool = True) -> dict:
    """A fairseq model's configuration."""
    keys = microsoft_config(config)
    normalise = keys.pop("normalize")
    assert normalise == config.normalise_waveform
    if not gated:
        for name in ("relative_position_embedding", "gru_rel_pos", "num_buckets", "max_distance", "expand_attention_head_size"):
            del keys[name]
    return keys


def saved(path: Path, content: object, **options: object) -> Path:
    torch.save(content, path, **options)
    return path


# --- Microsoft ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "tensors", "parameters"), [(WavLMConfig(), 248, 94_381_936), (LARGE, 488, 315_453_120)], ids=["Base", "Large"]
)
def test_the_names_and_shapes_for_microsoft_are_those_of_the_released_files(config, tensors, parameters):
    with torch.device("meta"):
        state = WavLM(config).state_dict()
    names = {old_spelling(fairseq_name(name, extractor_norm=config.extractor_norm)): tuple(t.shape) for name, t in state.items()}
    assert names == key_table(config)
    assert len(names) == tensors and sum(tensor.numel() for tensor in state.values()) == parameters
    assert set(microsoft_config(config)) == set(KEYS_OF_MICROSOFT)


def test_the_values_for_microsoft_are_those_of_the_released_base_file():
    # SPEC §6.4 and fairseq's pre-training command; the others are the classes' constants.
    released = {
        "activation_dropout": 0.0,
        "activation_fn": "gelu",
        "attention_dropout": 0.1,
        "conv_bias": False,
        "conv_feature_layers": "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2",
        "conv_pos": 128,
        "conv_pos_groups": 16,
        "dropout": 0.1,
        "dropout_features": 0.1,
        "dropout_input": 0.1,
        "encoder_attention_heads": 12,
        "encoder_embed_dim": 768,
        "encoder_ffn_embed_dim": 3072,
        "encoder_layerdrop": 0.05,
        "encoder_layers": 12,
        "extractor_mode": "default",
        "feature_grad_mult": 0.1,
        "layer_norm_first": False,
        "mask_channel_prob": 0.0,
        "mask_length": 10,
        "mask_prob": 0.8,
        "max_distance": 800,
        "normalize": False,
        "num_buckets": 320,
    }
    written = microsoft_config(WavLMConfig())
    assert {name: written[name] for name in released} == released
    large = microsoft_config(LARGE)
    assert (large["extractor_mode"], large["layer_norm_first"], large["normalize"]) == ("layer_norm", True, True)


@pytest.mark.parametrize(
    "expression", ["[(8,10,5)] + [(8,3,2)] * 4 + [(8,2,2)] * 2", "[(16,2,2)] * 6 + [(8,1,1)]*7", "[(1,2,3), (4,5,6)]*2", "[]"]
)
def test_a_list_of_convolutions_has_the_value_that_python_gives_it(expression):
    assert _convolution_list(expression) == eval(expression)


@pytest.mark.parametrize("config", [TINY, PRE_NORM], ids=["Base-like", "Large-like"])
def test_a_file_of_microsofts_form_comes_back_bit_equal_with_its_configuration(config, tmp_path):
    torch.manual_seed(0)
    model = WavLM(config)
    path = tmp_path / "WavLM.pt"
    path.write_bytes(microsoft_bytes(model))
    assert microsoft_bytes(model) == path.read_bytes(), "equal models give equal bytes"
    content = torch.load(path, weights_only=True)  # plain values and tensors, nothing else
    assert list(content) == ["cfg", "model"] and type(content["cfg"]) is dict
    assert {name: tuple(tensor.shape) for name, tensor in content["model"].items()} == key_table(config)
    again, account = load_checkpoint(path)
    assert again.config == config and not again.training
    assert model_hash(again) == model_hash(model) == open_teacher(path).hash
    assert account.dialect == "Microsoft" and not account.ignored and not account.created
    assert set(account.loaded) == set(content["model"])


def test_keys_that_microsofts_cfg_lacks_have_the_defaults_of_its_class():
    config, gated = read_fairseq_config(
        {"gru_rel_pos": True, "relative_position_embedding": True}, normalise_waveform=False, origin="nothing"
    )
    assert gated and config.max_distance == 1280 and config.num_buckets == 320
    assert (config.dim, config.layers, config.heads, config.feature_grad_mult) == (768, 12, 12, 1.0)
    assert (config.layer_drop, config.input_dropout, config.conv_kernels) == (0.0, 0.0, (10, 3, 3, 3, 3, 2, 2))
    content = microsoft_config(config)
    assert content["conv_feature_layers"] == "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
    assert read_fairseq_config(content, normalise_waveform=False, origin="ours")[0] == config


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"activation_fn": "relu"}, "activation_fn must be 'gelu', but is 'relu'"),
        ({"layer_type": "conformer"}, "layer_type must be 'transformer'"),
        ({"conv_pos_batch_norm": True}, "conv_pos_batch_norm must be False"),
        ({"gru_rel_pos": False}, "both be on or both off, but only one is"),
        ({"extractor_mode": "mel"}, "extractor_mode must be 'default' or 'layer_norm'"),
        ({"conv_feature_layers": "__import__('os').system('true')"}, "conv_feature_layers must be a sum of lists"),
        ({"conv_feature_layers": "[(8,10,5)] * 2"}, "must have a hop of 320"),
    ],
)
def test_a_configuration_that_the_encoder_cannot_represent_is_refused_by_its_key(change, sentence, tmp_path):
    path = saved(tmp_path / "model.pt", {"cfg": microsoft_config(TINY) | change, "model": random_state(TINY)})
    with pytest.raises(ValueError, match=f"(?s){sentence}"):
        load_checkpoint(path)


# --- fairseq, UniSpeech, s3prl ------------------------------------------------------------------------------------------

HEAD = {"label_embs_concat": torch.zeros(14, 8), "final_proj.weight": torch.zeros(8, 32), "final_proj.bias": torch.zeros(8)}


class Symbols:
    """Stands for fairseq's dictionary."""

    def __init__(self) -> None:
        self.symbols = ["<s>", "0"]


class StrEnum(Enum):
    """Stands for fairseq's enumeration of extractors."""

    default = "default"
    layer_norm = "layer_norm"


@pytest.fixture
def foreign(monkeypatch):
    """Classes of fairseq that exist while a file is written, and not when it is read."""
    package, data, choices = types.ModuleType("fairseq"), types.ModuleType("fairseq.data"), types.ModuleType("fairseq.choices")
    monkeypatch.setattr(Symbols, "__module__", "fairseq.data")
    monkeypatch.setattr(StrEnum, "__module__", "fairseq.choices")
    data.Symbols, choices.StrEnum = Symbols, StrEnum
    for module in (package, data, choices):
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def write(path: Path, content: object) -> Path:
        saved(path, content)
        for module in (package, data, choices):
            monkeypatch.delitem(sys.modules, module.__name__)
        return path

    return write


def fairseq_file(config: WavLMConfig, state: dict[str, Tensor], *, gated: bool, form: str) -> dict:
    keys = keys_of(config, gated=gated)
    task = {"_name": "hubert_pretraining", "normalize": config.normalise_waveform, "label_rate": 50}
    if form == "args":
        configuration: dict = {"args": argparse.Namespace(arch="hubert", **keys, **task), "cfg": None}
    else:
        whole = {"model": {"_name": "hubert", **keys, "extractor_mode": StrEnum(keys["extractor_mode"])}, "task": task}
        configuration = {"args": None, "cfg": OmegaConf.create(whole) if form == "omegaconf" else whole}
    training = {
        "criterion": {},
        "optimizer_history": [{"num_updates": 250_000}],
        "task_state": {"dictionaries": [Symbols()]},
        "extra_state": {"val_loss": 2.4},
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }
    return {**configuration, "model": state, **training}


@pytest.mark.parametrize("form", ["omegaconf", "dict", "args"])
@pytest.mark.parametrize(
    ("config", "gated"), [(TINY, True), (TINY, False), (PRE_NORM, False)], ids=["WavLM", "HuBERT", "HuBERT Large"]
)
def test_a_file_of_fairseq_loads_without_fairseq_and_every_entry_is_accounted_for(config, gated, form, tmp_path, foreign, caplog):
    state = random_state(config, gated=gated) | HEAD
    path = foreign(tmp_path / "checkpoint_best.pt", content := fairseq_file(config, state, gated=gated, form=form))
    model, account = load_checkpoint(path)
    assert model.config.normalise_waveform == config.normalise_waveform and model.config.dim == 32
    assert model.config.max_distance == (80 if gated else 800)
    assert torch.equal(model.encoder.layers[1].attention.value.weight, state["encoder.layers.1.self_attn.v_proj.weight"])
    assert torch.equal(model.encoder.positional.gain, state["encoder.pos_conv.0.weight_g"])
    assert set(account.loaded) == set(state) - set(HEAD)
    assert {name for name, reason in account.ignored.items() if reason == PREDICTION_HEAD} == set(HEAD)
    assert {name for name, reason in account.ignored.items() if reason == TRAINING_STATE} == set(content) - {
        "args",
        "cfg",
        "model",
    }
    assert set(account.ignored) | set(account.loaded) == (set(content) | set(state)) - {"args", "cfg", "model"}
    assert not set(account.ignored) & set(account.loaded)
    assert bool(account.created) != gated and set(account.created.values()) <= {NO_GATED_BIAS}
    ours = [name for names in account.loaded.values() for name in names] + list(account.created)
    assert sorted(ours) == sorted(model.state_dict()), "every tensor of the model has one origin"
    assert "left out final_proj.bias, final_proj.weight, label_embs_concat: prediction head" in caplog.text


def test_a_fine_tuned_file_gives_its_encoder_by_the_configuration_inside(tmp_path):
    state = {f"w2v_encoder.w2v_model.{name}": tensor for name, tensor in random_state(PRE_NORM, gated=False).items()}
    head = {"w2v_encoder.proj.weight": torch.zeros(5, 32), "w2v_encoder.proj.bias": torch.zeros(5)}
    kept = {"w2v_encoder.w2v_model.label_embs_concat": torch.zeros(14, 8)}
    inner = {"model": keys_of(PRE_NORM, gated=False), "task": {"normalize": True}}
    cfg = OmegaConf.create({"model": {"_name": "hubert_ctc", "w2v_args": inner}, "task": {"normalize": True}})
    path = saved(tmp_path / "ctc.pt", {"cfg": cfg, "model": state | head | kept})
    model, account = load_checkpoint(path)
    assert model.config.normalise_waveform and set(account.loaded) == set(state)
    assert account.ignored == dict.fromkeys(head, FINE_TUNED_HEAD) | dict.fromkeys(kept, PREDICTION_HEAD)


def test_a_wav2vec_2_file_loads_without_its_quantiser(tmp_path):
    extra = {"quantizer.vars": torch.zeros(1, 4, 8), "project_q.weight": torch.zeros(8, 8), "project_hid.bias": torch.zeros(8)}
    cfg = {"model": keys_of(TINY, gated=False), "task": {"normalize": False}}
    _, account = load_checkpoint(saved(tmp_path / "w2v.pt", {"cfg": cfg, "model": random_state(TINY, gated=False) | extra}))
    assert account.ignored == dict.fromkeys(extra, QUANTISER)


def test_a_file_that_s3prl_converted_loads(tmp_path):
    content = {
        "task_cfg": {"normalize": True},
        "model_cfg": keys_of(PRE_NORM, gated=False),
        "model_weight": random_state(PRE_NORM, gated=False) | HEAD,
        "dictionaries_symbols": [["<s>", "0"]],
    }
    model, account = load_checkpoint(saved(tmp_path / "hubert.pt", content))
    assert model.config.normalise_waveform and account.dialect.startswith("s3prl")
    assert account.ignored == dict.fromkeys(HEAD, PREDICTION_HEAD) | {"dictionaries_symbols": TRAINING_STATE}


def test_what_a_file_does_not_say_or_hold_is_refused_by_name(tmp_path):
    def refused(content: object, sentence: str) -> None:
        with pytest.raises(ValueError, match=sentence):
            load_checkpoint(saved(tmp_path / "model.pt", content))

    state, cfg = random_state(TINY), microsoft_config(TINY)
    refused({"model": state}, "must hold the model's configuration beside its weights")
    refused({"cfg": {"model": keys_of(TINY), "task": {}}, "model": state}, r"lacks it \(normalize\); pass normalise_waveform")
    refused(
        {"cfg": {"model": {"_name": "hubert_ctc"}, "task": {}}, "model": state}, r"must describe its encoder \(encoder_layers"
    )
    refused({"cfg": cfg, "model": {}}, "model in .*model.pt must hold tensors by name")
    refused({"cfg": cfg, "model": state | {"adapter.weight": torch.zeros(1)}}, r"model\.pt has adapter\.weight; if it is a head")
    refused({"cfg": cfg, "model": {k: v for k, v in state.items() if k != "mask_emb"}}, "lacks 1, first mask_emb")
    refused({"cfg": cfg | {"encoder_ffn_embed_dim": 64}, "model": state}, r"has \(48, 32\) instead of \(64, 32\)")
    refused({"cfg": cfg, "model": state | {"mask_emb": state["mask_emb"].int()}}, "mask_emb of .* is torch.int32; use an earlier")
    refused({"cfg": cfg, "model": state | {"mask_emb": state["mask_emb"] / 0}}, "mask_emb of .* has values that are not; use")
    name = "encoder.pos_conv.0.parametrizations.weight.original0"
    twice = state | {name: state["encoder.pos_conv.0.weight_g"] * 5}
    refused({"cfg": cfg, "model": twice}, r"has encoder\.pos_conv\.0\.weight_g and .*original0, which are the same one")
    refused({"openwavlm": {}, "state_dict": {}}, "is a checkpoint of a run of OpenWavLM; write its model by `openwavlm export")
    refused({"weight": torch.zeros(2)}, "holds weight; Hugging Face's weights need the directory")
    refused([torch.zeros(2)], "holds list; Hugging Face's")
    with pytest.raises(ValueError, match="does not exist"):
        load_checkpoint(tmp_path / "nothing.pt")


@pytest.mark.parametrize("lost", [("gru_rel_pos", "relative_position_embedding"), ()], ids=["fairseq", "hub folder"])
def test_a_gated_bias_that_the_configuration_does_not_mention_is_never_replaced(lost, tmp_path):
    config = replace(TINY, num_buckets=320, max_distance=800)  # those of the published files: the shapes fit
    if lost:
        keys = {key: value for key, value in microsoft_config(config).items() if key not in lost}
        path, named = saved(tmp_path / "model.pt", {"cfg": keys, "model": random_state(config)}), "relative_attention_bias|grep_"
    else:
        path, named = tmp_path, "rel_attn_embed|gru_rel_pos"
        save_huggingface(WavLM(config), path)
        about = path / "config.json"
        about.write_text(about.read_text().replace('"model_type": "wavlm"', '"model_type": "hubert"'))
    with pytest.raises(ValueError, match=rf"has no gated relative bias, which \S*({named})\S* belongs to"):
        load_checkpoint(path)


class OfBigEndian:
    """The number 32 as NumPy pickles it on a machine that writes the highest byte first."""

    def __reduce__(self):
        return np.int32(2).__reduce__()[0], (np.dtype(">i4"), (32).to_bytes(4, "big"))


def test_a_number_from_a_big_endian_machine_is_read(tmp_path):
    cfg = microsoft_config(TINY) | {"num_buckets": OfBigEndian()}
    path = saved(tmp_path / "model.pt", {"cfg": cfg, "model": random_state(TINY)})
    assert openwavlm.load(path).config == TINY


@pytest.mark.parametrize("value", [True, 1, np.bool_(True), np.int64(1), np.uint8(1), np.float32(1)])
def test_a_value_that_numpy_wrote_is_read(value, tmp_path):
    cfg = microsoft_config(TINY) | {"normalize": value, "gru_rel_pos": np.bool_(True), "encoder_layers": np.int64(2)}
    path = saved(
        tmp_path / "model.pt", {"cfg": cfg, "model": random_state(TINY), "other": [np.float64(-0.5), np.dtype(">i4").type(7)]}
    )
    assert load_checkpoint(path).model.config == replace(TINY, normalise_waveform=True)
    assert read_pickle(path)["other"] == [-0.5, 7]


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("normalize", None, r"lacks it \(normalize\)"),
        ("normalize", "yes", r"lacks it \(normalize\)"),
        ("encoder_layers", "2", "encoder_layers must be a whole number, but is '2' in"),
        ("encoder_layers", True, "encoder_layers must be a whole number, but is True in"),
        ("encoder_layers", 2.0, "encoder_layers must be a whole number, but is 2.0 in"),
        ("dropout", None, "dropout must be a number, but is None in"),
        ("dropout", False, "dropout must be a number, but is False in"),
        ("layer_norm_first", 2, "layer_norm_first must be true or false, but is 2 in"),
        ("layer_norm_first", "false", "layer_norm_first must be true or false, but is 'false' in"),
        ("gru_rel_pos", None, "gru_rel_pos must be true or false, but is None in"),
        ("extractor_mode", ["default"], "extractor_mode must be 'default' or 'layer_norm', but is"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_by_its_key(key, value, sentence, tmp_path):
    content = {"cfg": microsoft_config(TINY) | {key: value}, "model": random_state(TINY)}
    with pytest.raises(ValueError, match=sentence):
        load_checkpoint(saved(tmp_path / "model.pt", content))


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("hidden_size", 32.0, "hidden_size must be a whole number, but is 32.0 in"),
        ("num_hidden_layers", "2", "num_hidden_layers must be a whole number"),
        ("do_stable_layer_norm", "false", "do_stable_layer_norm must be true or false, but is 'false' in"),
        ("do_stable_layer_norm", None, "do_stable_layer_norm must be true or false, but is None in"),
        ("conv_dim", [8.5] * 7, "conv_dim must be a list of whole numbers"),
    ],
)
def test_a_value_of_another_type_in_a_hub_folder_is_refused_by_its_key(key, value, sentence, tmp_path):
    save_huggingface(WavLM(TINY), tmp_path)
    about = tmp_path / "config.json"
    about.write_text(json.dumps(json.loads(about.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=sentence):
        load_checkpoint(tmp_path)


def test_the_normalisation_may_stand_in_the_processors_file(tmp_path):
    save_huggingface(WavLM(PRE_NORM), tmp_path)
    extractor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor | {"do_normalize": False}}))
    with pytest.raises(ValueError, match=r"do_normalize must be .* has two values"):
        load_checkpoint(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    assert load_checkpoint(tmp_path).model.config.normalise_waveform is False
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": extractor}))
    assert load_checkpoint(tmp_path).model.config.normalise_waveform is True
    (tmp_path / "processor_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"do_normalize must be .* has no value"):
        load_checkpoint(tmp_path)


# --- hub folders in parts -----------------------------------------------------------------------------------------------


def split_weights(folder: Path, *, pickled: bool) -> Path:
    """Brings the weights of a hub folder into two files and their index, as `save_pretrained` does with large models."""
    whole = folder / "model.safetensors"
    tensors = sorted(load_file(whole).items())
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    file_of: dict[str, str] = {}
    for number, part in enumerate((tensors[:20], tensors[20:]), 1):
        path = folder / f"{stem}-{number:05d}-of-00002.{suffix}"
        if pickled:
            torch.save(dict(part), path)
        else:
            save_file(dict(part), path, metadata={"format": "pt"})
        file_of |= dict.fromkeys(dict(part), path.name)
    whole.unlink()
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": file_of}))
    return index


@pytest.mark.parametrize("pickled", [False, True], ids=["safetensors", "bin"])
def test_weights_in_parts_are_the_model_that_they_were_whole_and_a_changed_part_is_read_again(pickled, tmp_path):
    save_huggingface(WavLM(TINY), tmp_path)
    expected = open_teacher(tmp_path).hash
    split_weights(tmp_path, pickled=pickled)
    assert open_teacher(tmp_path).hash == expected
    part = min(tmp_path.glob("*-00001-of-00002.*"))
    content = torch.load(part, weights_only=True) if pickled else load_file(part)
    content = {name: tensor + 1 for name, tensor in content.items()}
    os.utime(saved(part, content) if pickled else save_file(content, part) or part, ns=(1, 1))
    assert open_teacher(tmp_path).hash != expected


def test_an_index_that_does_not_fit_its_parts_is_refused(tmp_path):
    save_huggingface(WavLM(TINY), tmp_path)
    index = split_weights(tmp_path, pickled=False)
    described = json.loads(index.read_text())

    def refused(sentence: str, content: object = described) -> None:
        index.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=sentence):
            openwavlm.load(tmp_path)

    moved = dict(described["weight_map"])
    name = min(moved)
    moved[name] = max(moved.values())
    refused(f"must hold the tensors that .* says, but {re.escape(name)} is in only one of them", {"weight_map": moved})
    refused("must name the file of each tensor under weight_map", {"weight_map": {name: "../model.safetensors"}})
    fewer = {tensor: file for tensor, file in described["weight_map"].items() if tensor != name}
    refused(f"must hold the tensors that .* says, but {re.escape(name)} is in only one of them", {"weight_map": fewer})
    refused("must name the file of each tensor under weight_map", {})
    refused("must hold a JSON object, but holds a list", [])
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    refused(r"must be beside it, but model-00002-of-00002\.safetensors is missing")


def test_safetensors_are_read_where_a_pickle_lies_beside_them_as_transformers_does(tmp_path):
    torch.manual_seed(0)
    model, other = WavLM(TINY), WavLM(TINY)
    save_huggingface(other, tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    save_huggingface(model, tmp_path)
    assert model_hash(openwavlm.load(tmp_path)) == model_hash(model) != model_hash(other)
    (tmp_path / "model.safetensors").unlink()
    assert model_hash(openwavlm.load(tmp_path)) == model_hash(other)


def test_a_mask_embedding_that_a_source_lacks_is_the_same_draw_at_each_loading(tmp_path):
    save_huggingface(WavLM(TINY), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["masked_spec_embed"]
    save_file(state, tmp_path / "model.safetensors")
    first, second = (openwavlm.load(tmp_path).mask_embedding.detach() for _ in range(2))
    assert torch.equal(first, second)
    assert 0 <= float(first.min()) < 0.2 and 0.8 < float(first.max()) < 1, "U(0, 1), as at the beginning of a run"


def test_a_neutral_gated_bias_has_a_table_of_zeros_and_gates_of_seven_quarters(tmp_path):
    state = random_state(TINY, gated=False)
    path = saved(
        tmp_path / "hubert.pt", {"cfg": {"model": keys_of(TINY, gated=False), "task": {"normalize": False}}, "model": state}
    )
    model = openwavlm.load(path)
    assert not model.encoder.relative_bias.embedding.weight.any()
    for layer in model.encoder.layers:
        gate, attention = torch.zeros(8), layer.attention
        assert not attention.gate.weight.any() and not attention.gate.bias.any()
        # WavLM (3): g_u (g_r s − 1) + 2 with both gates a half and s = 1.
        half = torch.sigmoid(gate.sum())
        assert torch.equal(half * (half * attention.gate_scale - 1) + 2, torch.full_like(attention.gate_scale, 1.75))


def test_a_file_with_both_configurations_is_read_by_the_newer_one(tmp_path):
    old = argparse.Namespace(**keys_of(PRE_NORM, gated=False), normalize=True)
    content = {"cfg": {"model": keys_of(TINY, gated=False), "task": {"normalize": False}}, "args": old}
    path = saved(tmp_path / "hubert.pt", {**content, "model": random_state(TINY, gated=False)})
    config = openwavlm.load(path).config
    assert (config.pre_norm, config.normalise_waveform) == (False, False)


# --- pickles ------------------------------------------------------------------------------------------------------------


class Colour(Enum):
    RED = "red"


class Attack:
    """A pickle that writes a file when it is read by an ordinary reader."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", ["os.system", "builtins.exec", "builtins.eval", "torch.hub.load", "pathlib.Path.unlink"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_code_in_a_pickle_is_not_run_and_the_way_out_is_said(function, zipped, tmp_path):
    victim = tmp_path / "victim"
    victim.touch()
    attacks = {
        "os.system": Attack(os.system, f"rm {victim}"),
        "builtins.exec": Attack(exec, f"import os; os.remove({str(victim)!r})"),
        "builtins.eval": Attack(eval, f"__import__('os').remove({str(victim)!r})"),
        "torch.hub.load": Attack(torch.hub.load, "x", "y"),
        "pathlib.Path.unlink": Attack(Path.unlink, victim),
    }
    content = {"cfg": microsoft_config(TINY), "model": random_state(TINY), "extra": attacks[function]}
    path = saved(tmp_path / "model.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"asks for .* nothing in it was run.*torch\.load\('FILE', weights_only=False\)"):
        load_checkpoint(path)
    assert victim.exists()


def contents_of_every_dialect() -> dict[str, dict]:
    """A file of each dialect of single files, whose readers use different entries."""
    state, keys, task = random_state(TINY), keys_of(TINY), {"normalize": False}
    return {
        "Microsoft": {"cfg": microsoft_config(TINY), "model": state},
        "fairseq, cfg": {"cfg": {"model": keys, "task": task}, "args": None, "model": state},
        "fairseq, args": {"cfg": None, "args": argparse.Namespace(**keys, **task), "model": state},
        "s3prl": {"task_cfg": task, "model_cfg": keys, "model_weight": state},
    }


@pytest.mark.parametrize("dialect", ["Microsoft", "fairseq, cfg", "fairseq, args", "s3prl", "torchaudio"])
def test_the_conversion_that_a_refusal_names_gives_a_file_that_loads(dialect, tmp_path):
    path, converted = tmp_path / "model.pt", tmp_path / "converted.pt"
    if dialect == "torchaudio":
        tensors, said = torchaudio_bytes(WavLM(TINY))
        content = torch.load(io.BytesIO(tensors), weights_only=True)
        converted.with_suffix(".json").write_bytes(said)
    else:
        content = contents_of_every_dialect()[dialect]
    expected = model_hash(load_checkpoint(saved(converted, content)).model)
    converted.unlink()
    saved(path, {**content, "extra": Attack(os.getpid)})
    with pytest.raises(ValueError, match=r"asks for posix\.getpid") as refusal:
        load_checkpoint(path)
    program = re.search(r'python -c "(.*)"', str(refusal.value))[1]
    assert '"' not in program and "$" not in program, "a shell hands it over as it is"
    exec(program.replace("FILE", str(path)).replace("NEW", str(converted)), {})
    assert model_hash(load_checkpoint(converted).model) == expected


def test_the_page_shows_the_conversion_that_the_refusal_names(tmp_path):
    path = saved(tmp_path / "model.pt", {"cfg": {}, "model": {}, "extra": Attack(os.getpid)})
    with pytest.raises(ValueError, match="asks for") as refusal:
        load_checkpoint(path)
    command = re.search(r'python -c ".*"', str(refusal.value))[0]
    assert command in (Path(__file__).parents[2] / "docs" / "checkpoints.md").read_text()


def test_code_in_the_weights_of_a_hub_folder_is_not_run_either(tmp_path):
    (tmp_path / "victim").touch()
    save_huggingface(WavLM(TINY), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    saved(
        tmp_path / "pytorch_model.bin",
        {"masked_spec_embed": torch.zeros(32), "x": Attack(os.system, f"rm {tmp_path / 'victim'}")},
    )
    with pytest.raises(ValueError, match=r"pytorch_model\.bin asks for posix\.system .*if torch\.is_tensor\(value\)"):
        openwavlm.load(tmp_path)
    assert (tmp_path / "victim").exists()


def test_a_pickle_cannot_change_the_functions_that_rebuild_tensors(tmp_path):
    before = torch._utils._rebuild_tensor_v2.__defaults__
    # BUILD with a slot state: setattr(function, "__defaults__", …) in an ordinary reader.
    program = pickle.PROTO + b"\x02" + pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n"
    program += pickle.NONE + pickle.EMPTY_DICT + pickle.BINUNICODE + b"\x0c\x00\x00\x00__defaults__" + pickle.EMPTY_TUPLE
    program += pickle.SETITEM + pickle.TUPLE2 + pickle.BUILD + pickle.STOP
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")
    with pytest.raises(ValueError, match=r"model\.pt"):
        load_checkpoint(path)
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


def test_a_file_from_before_torch_1_6_loads(tmp_path):
    state = random_state(TINY)
    content = {"cfg": microsoft_config(TINY), "model": state}
    new = saved(tmp_path / "new.pt", content)
    old = saved(tmp_path / "old.pt", content, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(old)
    assert model_hash(openwavlm.load(old)) == model_hash(openwavlm.load(new))


def test_loading_draws_nothing_from_the_global_generator(tmp_path):
    path = saved(
        tmp_path / "model.pt",
        {"cfg": {"model": keys_of(TINY, gated=False), "task": {"normalize": False}}, "model": random_state(TINY, gated=False)},
    )
    before = torch.get_rng_state()
    load_checkpoint(path)
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_and_parameters_load_as_float32(tmp_path):
    state = {name: torch.nn.Parameter(tensor.half()) for name, tensor in random_state(TINY).items()}
    for parameter in state.values():
        parameter.note = "an attribute of its own, with which torch pickles it otherwise"
    model = openwavlm.load(saved(tmp_path / "model.pt", {"cfg": microsoft_config(TINY), "model": state}))
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.mask_embedding, state["mask_emb"].detach().float())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_damaged_file_is_named_in_one_sentence(zipped, tmp_path):
    path = saved(
        tmp_path / "model.pt",
        {"cfg": microsoft_config(TINY), "model": random_state(TINY)},
        _use_new_zipfile_serialization=zipped,
    )
    complete = path.read_bytes()
    damaged = [complete[: len(complete) * part // 10] for part in (0, 1, 5, 9)]
    for content in [*damaged, complete[:-3], random.Random(1).randbytes(5000)]:
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"model\.pt must be a complete weights file, but cannot be read \(.*\); fetch or save"
        ) as refusal:
            load_checkpoint(path)
        assert "\n" not in str(refusal.value)


def test_a_hole_in_a_file_of_full_length_is_named(tmp_path):
    path = saved(tmp_path / "model.pt", {"cfg": microsoft_config(TINY), "model": random_state(TINY)})
    holed = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    # Inside one tensor's numbers, where no header tells.
    start = largest.header_offset + largest.file_size // 2
    holed[start : start + 256] = bytes(256)
    path.write_bytes(holed)
    with pytest.raises(ValueError, match=rf"cannot be read \(.*CRC.*{largest.filename}.*\); fetch or save it again"):
        load_checkpoint(path)


def test_a_file_without_checksums_loads(tmp_path):
    content = {"cfg": microsoft_config(TINY), "model": random_state(TINY)}
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path / "model.pt", content)
    finally:
        torch.serialization.set_crc32_options(True)
    assert model_hash(load_checkpoint(path).model) == model_hash(load_checkpoint(saved(tmp_path / "with.pt", content)).model)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n", "is a pointer of git-lfs, .*git lfs pull"),
        (b"\n<!DOCTYPE html><html>not found</html>", "is a web page"),
        (b"<html>not found</html>", "is a web page"),
        (gzip.compress(b"weights"), "is compressed by gzip; unpack it"),
        (b'{"a": 1}', "is JSON; give its directory"),
    ],
    ids=["git-lfs", "page", "html", "gzip", "json"],
)
def test_what_is_often_found_in_place_of_weights_is_recognised(content, sentence, tmp_path):
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(ValueError, match=rf"model\.pt must be a weights file, but {sentence}"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("length", [0x7B20, 0x7B, 0x8B1F], ids=["blank and brace", "brace", "gzip"])
def test_a_header_whose_length_looks_like_another_file_is_read(length, tmp_path):
    save_huggingface(WavLM(TINY), tmp_path)
    path = tmp_path / "model.safetensors"
    expected, header = model_hash(load_checkpoint(tmp_path).model), length.to_bytes(8, "little")
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    if size <= length:
        path.write_bytes(header + whole[8 : 8 + size].ljust(length) + whole[8 + size :])
        assert model_hash(load_checkpoint(tmp_path).model) == expected
    else:  # too short for this model: one tensor
        single = safetensors.torch.save({"a": torch.ones(2)})
        size = int.from_bytes(single[:8], "little")
        path.write_bytes(header + single[8 : 8 + size].ljust(length) + single[8 + size :])
        with pytest.raises(ValueError, match=r"model\.safetensors has a; if it is a head"):
            load_checkpoint(tmp_path)
    path.rename(tmp_path / "model.pt")
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="but is of the form safetensors; rename it"):
        load_checkpoint(tmp_path)


def test_files_of_a_hub_folder_need_their_directory_and_archives_are_unpacked(tmp_path):
    save_huggingface(WavLM(TINY), tmp_path)
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(ValueError, match=rf"give their directory {tmp_path} in place of {name}"):
            load_checkpoint(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "a.pt", "w") as archive:
        archive.writestr("WavLM-Base.pt", b"weights")
    with pytest.raises(ValueError, match=r"is an archive with WavLM-Base\.pt; unpack it"):
        load_checkpoint(tmp_path / "a.pt")
    (tmp_path / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ValueError, match=r"model\.safetensors must be a weights file, but is a pointer of git-lfs"):
        load_checkpoint(tmp_path)


@dataclass
class TypedModel:
    """As the dataclasses of fairseq's models: omegaconf pickles the types of its fields too."""

    latent_temp: tuple[float, float, float] = (2.0, 0.5, 0.999995)
    old_style: Tuple[float, float] = (1.0, 2.0)  # noqa: UP006
    lists: Dict[str, List[int]] = field(default_factory=dict)  # noqa: UP006
    either: Optional[List[int]] = None  # noqa: UP006, UP045
    values: Dict[str, Any] = field(default_factory=dict)  # noqa: UP006


def typed_configuration() -> object:
    configuration = OmegaConf.create({"model": {}, "task": {"normalize": False}})
    configuration.model = OmegaConf.structured(TypedModel)
    OmegaConf.set_struct(configuration, False)
    OmegaConf.set_struct(configuration.model, False)
    with open_dict(configuration):
        configuration.model.values = keys_of(TINY)
    return configuration


def with_attribute(tensor: Tensor) -> Tensor:
    tensor.group = "a"
    return tensor


def test_typed_configurations_devices_and_tensors_with_attributes_are_data(tmp_path, monkeypatch):
    module = types.ModuleType("fairseq.models")
    module.TypedModel = TypedModel
    monkeypatch.setitem(sys.modules, "fairseq", types.ModuleType("fairseq"))
    monkeypatch.setitem(sys.modules, "fairseq.models", module)
    monkeypatch.setattr(TypedModel, "__module__", "fairseq.models")
    content = {
        "omega": typed_configuration(),
        "device": torch.device("cpu"),
        "parameter": with_attribute(torch.nn.Parameter(torch.ones(2))),
        "tensor": with_attribute(torch.ones(3)),
        "none": type(None),
    }
    path = saved(tmp_path / "values.pt", content)
    found = read_pickle(path)
    assert found["omega"]["model"]["values"]["encoder_layers"] == 2 and found["omega"]["model"]["latent_temp"] == [
        2.0,
        0.5,
        0.999995,
    ]
    assert found["parameter"].tolist() == [1, 1] and found["tensor"].tolist() == [1, 1, 1]


def test_the_conversion_ends_in_plain_values(tmp_path):
    keys = keys_of(TINY) | {"device": torch.device("cpu"), "enum": Colour.RED, "number": np.float64(0.5), "path": Path("a")}
    model = {name: with_attribute(torch.nn.Parameter(tensor)) for name, tensor in random_state(TINY).items()}
    omega = OmegaConf.create({"nested": {"a": [1, 2]}})
    content = {"cfg": {"model": keys, "task": {"normalize": False, "omega": omega}}, "model": model, "extra": Attack(os.getpid)}
    path, converted = saved(tmp_path / "model.pt", content), tmp_path / "converted.pt"
    with pytest.raises(ValueError, match=r"asks for .*Colour") as refusal:
        load_checkpoint(path)
    program = re.search(r'python -c "(.*)"', str(refusal.value))[1]
    exec(program.replace("FILE", str(path)).replace("NEW", str(converted)), {})
    found = torch.load(converted, weights_only=True)
    assert found["cfg"]["model"] == keys_of(TINY) | {
        "device": None, "enum": "red", "number": 0.5, "path": None, "conv_feature_layers": keys["conv_feature_layers"]
    }  # fmt: skip
    assert found["cfg"]["task"]["omega"] == {"nested": {"a": [1, 2]}}
    assert load_checkpoint(converted).model.config == TINY


def test_a_torchscript_program_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py"):
            archive.writestr(f"archive/{name}", b"")
    path.write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="is a TorchScript program; save the model's state_dict"):
        read_pickle(path)


def test_a_tar_archive_is_refused(tmp_path):
    with tarfile.open(tmp_path / "model.pt", "w") as archive:
        archive.add(saved(tmp_path / "inner.pt", {"model": torch.zeros(2)}), "storages")
    with pytest.raises(ValueError, match="is a tar archive; unpack it"):
        read_pickle(tmp_path / "model.pt")


def test_configurations_become_plain_values(tmp_path):
    content = {
        "omega": OmegaConf.create({"a": [1, {"b": None}], "c": "${a}", "d": 0.5}),
        "space": argparse.Namespace(x=1, inner=argparse.Namespace(y=(2, 3))),
        "sets": {1, 2},
    }
    found = read_pickle(saved(tmp_path / "values.pt", content))
    assert found["omega"]["a"] == [1, {"b": None}] and found["omega"]["d"] == 0.5
    assert found["space"] == {"x": 1, "inner": {"y": [2, 3]}} and found["sets"] == {1, 2}
    assert not any(re.search("Inert|omegaconf", repr(type(value))) for value in found.values())
