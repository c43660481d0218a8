"""Hidden states equal transformers' `WavLMModel` (max absolute difference over the reference's root mean square)."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import openwavlm
from openwavlm.audio.frames import num_frames
from openwavlm.checkpoints.account import NO_MASK_EMBEDDING
from openwavlm.checkpoints.huggingface import huggingface_state, load_huggingface, load_huggingface_state, save_huggingface
from openwavlm.checkpoints.huggingface_config import huggingface_config, read_config
from openwavlm.checkpoints.load import files_of
from openwavlm.model.config import WavLMConfig
from openwavlm.model.wavlm import normalise
from random_models import TINY, TINY_LARGE, randomise

transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5
VARIANTS = {
    "post-norm, group": TINY,
    "post-norm, layer, odd positional kernel": replace(TINY, extractor_norm="layer", positional_kernel=31),
    "pre-norm, group, conv bias": replace(TINY, pre_norm=True, conv_bias=True),
    "pre-norm, layer, normalised": TINY_LARGE,
}


def reference_model(config: WavLMConfig):
    content = huggingface_config(config)
    content.pop("model_type")
    torch.manual_seed(0)
    model = transformers.WavLMModel(transformers.WavLMConfig(**content)).eval()
    randomise(model)
    return model


def pair(config: WavLMConfig):
    reference = reference_model(config)
    model, account = load_huggingface_state(config, reference.state_dict(), origin="the reference")
    assert not account.ignored and not account.created
    return reference, model


def error(ours: Tensor, theirs: Tensor) -> float:
    return float(((ours - theirs).abs().max() / theirs.square().mean().sqrt()).detach())


@torch.no_grad()
def reference_states(reference, waveforms: Tensor, attention_mask: Tensor | None = None) -> list[Tensor]:
    """All hidden states, the last one through a pre-norm model's closing norm (`hidden_states[-1]` has it or not by version)."""
    output = reference(waveforms, attention_mask=attention_mask, output_hidden_states=True)
    return [*output.hidden_states[:-1], output.last_hidden_state]


def speechlike(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 0.1 * torch.randn(*shape, generator=generator).cumsum(-1).sin()


@pytest.mark.parametrize("name", VARIANTS)
def test_all_hidden_states_equal_without_padding(name):
    config = replace(VARIANTS[name], normalise_waveform=False)
    reference, model = pair(config)
    waveforms = speechlike(2, 40_000)
    theirs = reference_states(reference, waveforms)
    ours = model.extract(waveforms, final_norm=True)
    assert len(ours) == len(theirs) == config.layers + 1
    assert max(error(a, b) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE
    assert error(model(waveforms).final, theirs[-1]) < TOLERANCE


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")  # transformers' own call
@pytest.mark.parametrize("name", VARIANTS)
def test_all_hidden_states_equal_on_valid_frames_of_a_padded_batch(name):
    config = replace(VARIANTS[name], normalise_waveform=False)
    reference, model = pair(config)
    num_samples = torch.tensor([16_000, 9_000, 4_321])
    waveforms = speechlike(3, 16_000)
    present = torch.arange(16_000) < num_samples.unsqueeze(1)
    waveforms = waveforms * present
    theirs = reference_states(reference, waveforms, present.long())
    ours = model.extract(waveforms, num_samples, final_norm=True, with_padding=True)
    for row, frames in enumerate(num_frames(num_samples).tolist()):
        assert max(error(a[row, :frames], b[row, :frames]) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE
    assert num_frames(9_000) == 27


def test_the_last_state_of_a_pre_norm_model_is_the_residual_stream_unless_the_closing_norm_is_asked_for():
    reference, model = pair(replace(TINY, pre_norm=True))
    waveforms = speechlike(1, 8_000)
    theirs = reference_states(reference, waveforms)[-1]
    assert error(model.extract(waveforms)[-1], theirs) > 0.1
    assert error(model.encoder.norm(model.extract(waveforms)[-1]), theirs) < TOLERANCE


def test_normalised_waveforms_equal_the_preprocessor_up_to_its_smaller_eps():
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    rows = [5 * speechlike(9_000).numpy() + 0.3, 3 * speechlike(5_000).numpy()]
    theirs = extractor(rows, sampling_rate=16_000, padding=True, return_tensors="pt").input_values
    waveforms = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True)
    ours = normalise(waveforms, torch.tensor([9_000, 5_000]))
    assert error(ours, theirs) < 1e-3
    assert bool((ours[1, 5_000:] == 0).all())


FULL_BASE = WavLMConfig()
FULL_LARGE = WavLMConfig(
    extractor_norm="layer",
    dim=1024,
    ffn_dim=4096,
    heads=16,
    layers=24,
    pre_norm=True,
    dropout=0,
    attention_dropout=0,
    input_dropout=0,
    layer_drop=0,
)


@pytest.mark.parametrize("config", [FULL_BASE, FULL_LARGE], ids=["Base", "Large"])
def test_all_hidden_states_equal_at_full_size(config):
    reference, model = pair(config)
    waveforms = speechlike(1, 16_000)
    theirs = reference_states(reference, waveforms)
    ours = model.extract(waveforms, final_norm=True)
    assert max(error(a, b) for a, b in zip(ours, theirs, strict=True)) < TOLERANCE


@pytest.mark.parametrize("name", VARIANTS)
def test_our_directory_loads_in_transformers_with_every_key(name, tmp_path: Path):
    config = VARIANTS[name]
    _, model = pair(config)
    save_huggingface(model, tmp_path, metadata={"step": 12, "fingerprint": "abc"})
    reference, info = transformers.WavLMModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert transformers.AutoFeatureExtractor.from_pretrained(tmp_path).do_normalize == config.normalise_waveform
    waveforms = speechlike(1, 10_000)
    theirs = reference_states(reference.eval(), waveforms)
    ours = model(waveforms)
    assert max(error(a, b) for a, b in zip([*ours.hidden_states[:-1], ours.final], theirs, strict=True)) < TOLERANCE


def test_our_directory_trains_in_transformers_with_feature_masking(tmp_path: Path):
    _, model = pair(TINY)
    save_huggingface(model, tmp_path)
    reference = transformers.WavLMModel.from_pretrained(tmp_path, mask_feature_prob=0.3).train()
    assert reference(speechlike(2, 8_000)).last_hidden_state.isfinite().all()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_directory_of_transformers_loads_here_unchanged(name, tmp_path: Path):
    config = VARIANTS[name]
    reference = reference_model(config)
    reference.save_pretrained(tmp_path)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=config.normalise_waveform).save_pretrained(tmp_path)
    model = openwavlm.load(tmp_path)
    assert not model.training
    assert model.config == replace(config, feature_grad_mult=model.config.feature_grad_mult)
    for name_of, tensor in huggingface_state(model).items():
        assert torch.equal(tensor, reference.state_dict()[name_of]), name_of


def test_the_encoder_of_a_fine_tuned_model_loads_and_its_head_is_named(tmp_path: Path, caplog):
    content = huggingface_config(TINY)
    content.pop("model_type")
    reference = transformers.WavLMForCTC(transformers.WavLMConfig(**content)).eval()
    reference.save_pretrained(tmp_path)
    model, _ = load_huggingface(tmp_path, normalise_waveform=False)
    assert "lm_head.weight" in caplog.text
    assert torch.equal(model.projection.weight, reference.wavlm.feature_projection.projection.weight)


def test_a_directory_in_several_weights_files_is_the_same_model(tmp_path: Path):
    reference, model = pair(TINY)
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("model-*-of-*.safetensors"))
    assert len(parts) > 2 and not (tmp_path / "model.safetensors").exists()
    loaded, account = load_huggingface(tmp_path, normalise_waveform=False)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    assert account.origin.endswith("model.safetensors.index.json") and not account.created
    assert {tmp_path / "model.safetensors.index.json", *parts} <= set(files_of(tmp_path))


def test_a_model_that_was_saved_without_masking_gets_a_mask_embedding_and_equals_it(tmp_path: Path):
    content = huggingface_config(TINY) | {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    content.pop("model_type")
    reference = transformers.WavLMModel(transformers.WavLMConfig(**content)).eval()
    reference.save_pretrained(tmp_path)
    model, account = load_huggingface(tmp_path, normalise_waveform=False)
    assert account.created == {"mask_embedding": NO_MASK_EMBEDDING}
    again, _ = load_huggingface(tmp_path, normalise_waveform=False)
    assert torch.equal(model.mask_embedding, again.mask_embedding)
    waveforms = torch.randn(1, 8000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert error(model.extract(waveforms)[-1], reference(waveforms).last_hidden_state) < 1e-5


def test_an_old_hub_file_with_the_former_weight_norm_names_loads(tmp_path: Path):
    _, model = pair(TINY)
    save_huggingface(model, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = huggingface_state(model)
    conv = "encoder.pos_conv_embed.conv."
    state[f"{conv}weight_g"] = state.pop(f"{conv}parametrizations.weight.original0")
    state[f"{conv}weight_v"] = state.pop(f"{conv}parametrizations.weight.original1")
    torch.save({f"wavlm.{name}": tensor for name, tensor in state.items()}, tmp_path / "pytorch_model.bin")
    waveforms = speechlike(1, 6_000)
    for ours, loaded in zip(model.extract(waveforms), openwavlm.load(tmp_path).extract(waveforms), strict=True):
        assert torch.equal(ours, loaded)


def test_every_default_of_the_reference_class_is_known():
    defaults = transformers.WavLMConfig().to_dict()
    read = read_config({"model_type": "wavlm"}, normalise_waveform=False, origin="nothing")
    written = huggingface_config(read)
    different = {key for key, value in written.items() if key in defaults and list_of(defaults[key]) != list_of(value)}
    assert different <= {"architectures"}


def list_of(value):
    return list(value) if isinstance(value, tuple) else value
