"""Checkpoints of every dialect, in and out: hidden states equal the library that the file belongs to, to 1e-5 of their level.

Of transformers and torchaudio; Microsoft's and fairseq's code is in `test_originals_match.py`, their key tables (SPEC §6) in
`tests/unit/test_checkpoint_files.py`.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import openwavlm
from openwavlm.checkpoints.account import NO_GATED_BIAS
from openwavlm.checkpoints.fairseq import microsoft_bytes
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.checkpoints.huggingface_config import read_config
from openwavlm.checkpoints.load import load_checkpoint
from openwavlm.checkpoints.torchaudio import torchaudio_bytes
from openwavlm.labels.teacher import model_hash
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import WavLM
from random_models import TINY, TINY_LARGE, randomise
from torch_audio import torchaudio

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5


def wavlm(config: WavLMConfig) -> WavLM:
    torch.manual_seed(0)
    model = WavLM(config).eval()
    randomise(model)
    return model


def speechlike(samples: int) -> Tensor:
    return 0.1 * torch.randn(2, samples, generator=torch.Generator().manual_seed(2)).cumsum(-1).sin()


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.square().mean().sqrt())


@torch.no_grad()
def largest_error(model: WavLM, reference, waveforms: Tensor) -> float:
    """Of all hidden states; the reference's last one passes a pre-norm model's closing norm or not by version, so ours is matched."""
    output = reference(waveforms, output_hidden_states=True)
    ours = model(waveforms)
    theirs = [*output.hidden_states[:-1], output.last_hidden_state]
    assert len(ours.hidden_states) == len(theirs)
    return max(error(a, b) for a, b in zip([*ours.hidden_states[:-1], ours.final], theirs, strict=True))


# --- HuBERT and wav2vec 2.0, which have no gated bias -------------------------------------------------------------------

SIZES = {
    "conv_dim": [32] * 7,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
BASE_LIKE = {"feat_extract_norm": "group", "do_stable_layer_norm": False}
LARGE_LIKE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
CLASSES = {
    "HubertModel": (transformers.HubertModel, transformers.HubertConfig),
    "HubertForCTC": (transformers.HubertForCTC, transformers.HubertConfig),
    "Wav2Vec2Model": (transformers.Wav2Vec2Model, transformers.Wav2Vec2Config),
    "Wav2Vec2ForPreTraining": (transformers.Wav2Vec2ForPreTraining, transformers.Wav2Vec2Config),
}


def saved(folder: Path, name: str, *, normalised: bool = False, **changes: object):
    """A directory of a random model, as its class saves it; returns its encoder."""
    kind, config = CLASSES[name]
    torch.manual_seed(0)
    model = kind(config(**SIZES, **changes)).eval()
    randomise(model)
    model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=normalised).save_pretrained(folder)
    return getattr(model, "hubert", getattr(model, "wav2vec2", model))


@pytest.mark.parametrize("conv_bias", [False, True], ids=["no conv bias", "conv bias"])
@pytest.mark.parametrize("shape", [BASE_LIKE, LARGE_LIKE], ids=["group, post-norm", "layer, pre-norm"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_directory_without_gated_bias_is_a_wavlm_that_equals_it(name, shape, conv_bias, tmp_path):
    normalised = shape is LARGE_LIKE
    reference = saved(tmp_path, name, normalised=normalised, conv_bias=conv_bias, **shape)
    model, account = load_checkpoint(tmp_path)
    assert largest_error(model, reference, speechlike(20_000)) < TOLERANCE
    assert model.config.normalise_waveform == normalised and model.config.pre_norm == shape["do_stable_layer_norm"]
    assert set(account.created.values()) == {NO_GATED_BIAS} and len(account.created) == 1 + 3 * 3
    assert bool(account.ignored) == (name in ("HubertForCTC", "Wav2Vec2ForPreTraining"))


def test_a_neutral_gated_bias_begins_to_learn_at_the_first_update_and_its_gates_at_the_second(tmp_path):
    saved(tmp_path, "HubertModel", **BASE_LIKE)
    model = openwavlm.load(tmp_path).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    table, gate = model.encoder.relative_bias.embedding.weight, model.encoder.layers[0].attention
    target = torch.randn(2, 31, 64, generator=torch.Generator().manual_seed(3))
    gradients = []
    for _ in range(2):
        optimiser.zero_grad()
        (model(speechlike(10_000)).final - target).square().mean().backward()
        gradients.append([float(p.grad.abs().max()) for p in (table, gate.gate.weight, gate.gate_scale)])
        optimiser.step()
    assert gradients[0][0] > 0 and gradients[0][1:] == [0, 0]
    assert min(gradients[1]) > 0


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("HubertModel", {"conv_pos_batch_norm": True}, "conv_pos_batch_norm must be False"),
        ("HubertModel", {"feat_proj_layer_norm": False}, "feat_proj_layer_norm must be True"),
        ("HubertModel", {"hidden_act": "relu"}, "hidden_act must be 'gelu'"),
        ("Wav2Vec2Model", {"add_adapter": True}, "add_adapter must be False"),
    ],
)
def test_a_variant_that_the_encoder_cannot_represent_is_refused_by_name(name, changes, key, tmp_path):
    saved(tmp_path, name, **changes)
    with pytest.raises(ValueError, match=f"{key}, but is .*this encoder has no such variant"):
        openwavlm.load(tmp_path)


# --- fairseq's and Microsoft's names, by the table of SPEC §6.3 -----------------------------------------------------------

# Hugging Face's name → fairseq's, in this order.
RENAMED = (
    (r"^masked_spec_embed$", "mask_emb"),
    (r"^(feature_extractor\.conv_layers\.\d+)\.conv\.", r"\1.0."),
    (r"^(feature_extractor\.conv_layers\.\d+)\.layer_norm\.", r"\1.NORM."),
    (r"^feature_projection\.layer_norm", "layer_norm"),
    (r"^feature_projection\.projection", "post_extract_proj"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original0", "pos_conv.0.weight_g"),
    (r"pos_conv_embed\.conv\.parametrizations\.weight\.original1", "pos_conv.0.weight_v"),
    (r"pos_conv_embed\.conv", "pos_conv.0"),
    (r"(\d)\.layer_norm", r"\1.self_attn_layer_norm"),
    (r"\.attention\.", ".self_attn."),
    (r"gru_rel_pos_linear", "grep_linear"),
    (r"gru_rel_pos_const", "grep_a"),
    (r"rel_attn_embed", "relative_attention_bias"),
    (r"feed_forward\.intermediate_dense", "fc1"),
    (r"feed_forward\.output_dense", "fc2"),
)


def fairseq_state(reference, *, layer_norm: bool) -> dict[str, Tensor]:
    state = {}
    for name, tensor in reference.state_dict().items():
        for pattern, theirs in RENAMED:
            name = re.sub(pattern, theirs, name)
        state[name.replace("NORM", "2.1" if layer_norm else "2")] = tensor
    return state


@pytest.mark.parametrize("shape", [BASE_LIKE, LARGE_LIKE], ids=["Base-like", "Large-like"])
def test_a_file_of_fairseq_equals_the_hubert_that_its_tensors_make_and_is_the_same_model_as_the_directory(shape, tmp_path):
    large = shape is LARGE_LIKE
    reference = saved(tmp_path / "folder", "HubertModel", normalised=large, **shape)
    model = {
        "_name": "hubert",
        "extractor_mode": "layer_norm" if large else "default",
        "layer_norm_first": large,
        "conv_feature_layers": "[(32,10,5)] + [(32,3,2)] * 4 + [(32,2,2)] * 2",
        "encoder_layers": 3,
        "encoder_embed_dim": 64,
        "encoder_ffn_embed_dim": 128,
        "encoder_attention_heads": 4,
        "conv_pos": 16,
        "conv_pos_groups": 4,
    }
    content = {"cfg": {"model": model, "task": {"normalize": large}}, "model": fairseq_state(reference, layer_norm=large)}
    torch.save(content, tmp_path / "hubert.pt")
    ours = openwavlm.load(tmp_path / "hubert.pt")
    assert largest_error(ours, reference, speechlike(20_000)) < TOLERANCE
    assert model_hash(ours) == model_hash(openwavlm.load(tmp_path / "folder")), "one teacher, whatever file it came from"


@pytest.mark.parametrize("config", [TINY, TINY_LARGE], ids=["Base-like", "Large-like"])
def test_what_is_written_for_microsoft_has_transformers_tensors_under_the_names_of_the_table(config, tmp_path):
    model = wavlm(config)
    save_huggingface(model, tmp_path)
    reference = transformers.WavLMModel.from_pretrained(tmp_path).eval()
    (tmp_path / "model.pt").write_bytes(microsoft_bytes(model))
    written = torch.load(tmp_path / "model.pt", weights_only=True)["model"]
    expected = fairseq_state(reference, layer_norm=config.extractor_norm == "layer")
    assert set(written) == set(expected) and all(torch.equal(written[name], expected[name]) for name in written)
    assert largest_error(load_checkpoint(tmp_path / "model.pt").model, reference, speechlike(20_000)) < TOLERANCE


# --- torchaudio ---------------------------------------------------------------------------------------------------------


def torchaudio_model(said: dict):
    make = torchaudio().models.wavlm_model
    names = make.__code__.co_varnames[: make.__code__.co_argcount]
    return make(**{name: said[name] for name in names}).eval()


@torch.no_grad()
def largest_torchaudio_error(model: WavLM, reference, waveforms: Tensor) -> float:
    theirs, _ = reference.extract_features(waveforms)
    ours = model(waveforms)
    final, _ = reference(waveforms)
    assert len(theirs) == len(ours.hidden_states) - 1
    return max(error(a, b) for a, b in zip([*ours.hidden_states[1:], ours.final], [*theirs, final], strict=True))


@pytest.mark.parametrize("config", [TINY, TINY_LARGE], ids=["Base-like", "Large-like"])
def test_what_is_written_for_torchaudio_loads_there_strictly_and_comes_back_bit_equal(config, tmp_path):
    model = wavlm(config)
    weights, described = torchaudio_bytes(model)
    (tmp_path / "model.pt").write_bytes(weights)
    (tmp_path / "model.json").write_bytes(described)
    said = json.loads(described)
    reference = torchaudio_model(said)
    reference.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    assert largest_torchaudio_error(model, reference, speechlike(20_000)) < TOLERANCE
    assert said["normalize_waveform"] == config.normalise_waveform
    for path in (tmp_path, tmp_path / "model.pt"):
        again, account = load_checkpoint(path)
        assert model_hash(again) == model_hash(model) and not account.created and not account.ignored
        assert replace(again.config, feature_grad_mult=config.feature_grad_mult) == config


@pytest.mark.parametrize("config", [TINY, TINY_LARGE], ids=["Base-like", "Large-like"])
def test_a_state_dict_of_torchaudios_wavlm_needs_only_what_tensors_do_not_tell(config, tmp_path):
    reference = torchaudio_model(json.loads(torchaudio_bytes(wavlm(config))[1]))
    randomise(reference)
    path = tmp_path / "wavlm.pth"
    torch.save(reference.state_dict(), path)
    untold = {"encoder_layer_norm_first": config.pre_norm, "encoder_max_distance": config.max_distance}
    with pytest.raises(ValueError, match=r"lack .*encoder_max_distance.*, which .*wavlm\.json must have, but it is missing"):
        load_checkpoint(path)
    path.with_suffix(".json").write_text(json.dumps(untold))
    with pytest.raises(ValueError, match="lack normalize_waveform"):
        load_checkpoint(path)
    model, account = load_checkpoint(path, normalise_waveform=config.normalise_waveform)
    assert largest_torchaudio_error(model, reference, speechlike(20_000)) < TOLERANCE
    assert list(account.created) == ["mask_embedding"]
    assert model_hash(load_checkpoint(path, normalise_waveform=config.normalise_waveform).model) == model_hash(model)


@pytest.mark.parametrize("pre_norm", [False, True], ids=["Base-like", "Large-like"])
def test_a_hubert_of_torchaudio_with_its_pre_training_head_equals_it(pre_norm, tmp_path):
    reference = (
        torchaudio()
        .models.hubert_pretrain_model(
            extractor_mode="layer_norm" if pre_norm else "group_norm",
            extractor_conv_layer_config=[(32, 10, 5)] + [(32, 3, 2)] * 4 + [(32, 2, 2)] * 2,
            extractor_conv_bias=False,
            encoder_embed_dim=64,
            encoder_projection_dropout=0.0,
            encoder_pos_conv_kernel=16,
            encoder_pos_conv_groups=4,
            encoder_num_layers=3,
            encoder_num_heads=4,
            encoder_attention_dropout=0.0,
            encoder_ff_interm_features=128,
            encoder_ff_interm_dropout=0.0,
            encoder_dropout=0.0,
            encoder_layer_norm_first=pre_norm,
            encoder_layer_drop=0.0,
            mask_prob=0.8,
            mask_selection="static",
            mask_other=0.0,
            mask_length=10,
            no_mask_overlap=False,
            mask_min_space=1,
            mask_channel_prob=0.0,
            mask_channel_selection="static",
            mask_channel_other=0.0,
            mask_channel_length=10,
            no_mask_channel_overlap=False,
            mask_channel_min_space=1,
            skip_masked=False,
            skip_nomask=False,
            num_classes=10,
            final_dim=8,
            feature_grad_mult=0.1,
        )
        .eval()
    )
    randomise(reference)
    path = tmp_path / "hubert.pt"
    torch.save(reference.state_dict(), path)
    path.with_suffix(".json").write_text(
        json.dumps({"encoder_layer_norm_first": pre_norm, "encoder_num_heads": 4, "normalize_waveform": pre_norm})
    )
    model, account = load_checkpoint(path)
    assert largest_torchaudio_error(model, reference.wav2vec2, speechlike(20_000)) < TOLERANCE
    assert sorted(account.ignored) == [
        "logit_generator.final_proj.bias",
        "logit_generator.final_proj.weight",
        "logit_generator.label_embeddings",
    ]
    assert torch.equal(model.mask_embedding, reference.mask_generator.mask_embedding)
    assert set(account.loaded) | set(account.ignored) == set(reference.state_dict())


# --- dropouts, which no hidden state in evaluation shows ------------------------------------------------------------------

# Of the residual branches, attention weights, feed-forward, projected features and layers.
DROPOUTS = {"dropout": 0.11, "attention_dropout": 0.12, "activation_dropout": 0.13, "input_dropout": 0.14, "layer_drop": 0.15}


def test_each_dropout_is_applied_by_transformers_and_torchaudio_where_ours_is_and_comes_back(tmp_path):
    model = wavlm(replace(TINY, **DROPOUTS))
    save_huggingface(model, tmp_path / "huggingface")
    theirs = transformers.WavLMModel.from_pretrained(tmp_path / "huggingface")
    block = theirs.encoder.layers[0]
    assert theirs.encoder.dropout.p == block.dropout.p == block.feed_forward.output_dropout.p == 0.11
    assert block.attention.dropout == 0.12 and block.feed_forward.intermediate_dropout.p == 0.13
    assert theirs.feature_projection.dropout.p == 0.14 and theirs.config.layerdrop == 0.15
    weights, described = torchaudio_bytes(model)
    reference = torchaudio_model(json.loads(described))
    block = reference.encoder.transformer.layers[0]
    assert reference.encoder.transformer.dropout.p == block.dropout.p == block.feed_forward.output_dropout.p == 0.11
    assert block.attention.attention.dropout == 0.12 and block.feed_forward.intermediate_dropout.p == 0.13
    assert reference.encoder.feature_projection.dropout.p == 0.14 and reference.encoder.transformer.layer_drop == 0.15
    (tmp_path / "model.pt").write_bytes(weights)
    (tmp_path / "model.json").write_bytes(described)
    (tmp_path / "WavLM.pt").write_bytes(microsoft_bytes(model))
    for path in (tmp_path / "huggingface", tmp_path / "model.pt", tmp_path / "WavLM.pt"):
        config = load_checkpoint(path).model.config
        assert {name: getattr(config, name) for name in DROPOUTS} == DROPOUTS
    # Microsoft's `WavLMConfig` (WavLM.py) names them so.
    cfg = torch.load(tmp_path / "WavLM.pt", weights_only=True)["cfg"]
    named = ("dropout", "attention_dropout", "activation_dropout", "dropout_input", "encoder_layerdrop")
    assert [cfg[name] for name in named] == list(DROPOUTS.values())


def test_keys_that_a_folder_lacks_have_the_defaults_of_transformers_class(tmp_path):
    fields = {
        "dropout": "hidden_dropout",
        "attention_dropout": "attention_dropout",
        "activation_dropout": "activation_dropout",
        "input_dropout": "feat_proj_dropout",
        "layer_drop": "layerdrop",
        "num_buckets": "num_buckets",
        "max_distance": "max_bucket_distance",
        "dim": "hidden_size",
        "ffn_dim": "intermediate_size",
        "heads": "num_attention_heads",
        "layers": "num_hidden_layers",
        "positional_kernel": "num_conv_pos_embeddings",
        "positional_groups": "num_conv_pos_embedding_groups",
        "pre_norm": "do_stable_layer_norm",
        "conv_bias": "conv_bias",
        "extractor_norm": "feat_extract_norm",
        "conv_dims": "conv_dim",
        "conv_kernels": "conv_kernel",
        "conv_strides": "conv_stride",
    }
    config, theirs = read_config({"model_type": "wavlm"}, normalise_waveform=False, origin="nothing"), transformers.WavLMConfig()
    for ours, key in fields.items():
        value = getattr(theirs, key)
        assert getattr(config, ours) == (tuple(value) if isinstance(value, list) else value), ours
