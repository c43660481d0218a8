"""The model's arithmetic: counts, buckets, backends, LayerDrop, padding, masks, initialisation, determinism."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import openwavlm
from closeness import assert_close_to_scale
from openwavlm.audio.frames import num_frames
from openwavlm.checkpoints.huggingface import load_huggingface, save_huggingface
from openwavlm.checkpoints.huggingface_config import preprocessor_config
from openwavlm.model.attention import choose_backend, eager_attention, relative_buckets, toeplitz, toeplitz_by_gather
from openwavlm.model.config import WavLMConfig
from openwavlm.model.transformer import PositionalConv
from openwavlm.model.wavlm import WavLM, normalise
from openwavlm.runs.compose import composed, plain
from openwavlm.training.config import RunConfig, with_placeholders

TINY = WavLMConfig(
    conv_dims=(16,) * 7,
    dim=32,
    ffn_dim=64,
    heads=2,
    layers=3,
    positional_kernel=8,
    positional_groups=4,
    num_buckets=32,
    max_distance=80,
    dropout=0,
    attention_dropout=0,
    input_dropout=0,
    layer_drop=0,
    feature_grad_mult=1,
)
CONF = Path(__file__).parents[2] / "conf" / "model"


def tiny(**changes) -> WavLM:
    """A tiny model whose biases, gates and relative bias all matter."""
    torch.manual_seed(0)
    model = WavLM(replace(TINY, **changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_bias" in name:
                parameter.normal_()
            elif "gate" in name or parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def waveforms(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(3))


def model_files() -> dict[str, WavLMConfig]:
    choices = {path.stem: plain(composed("train", ["name=x", f"model={path.stem}"])) for path in sorted(CONF.glob("*.yaml"))}
    return {name: RunConfig.of(with_placeholders(values)).model for name, values in choices.items()}


def test_the_published_sizes_have_the_published_parameters():
    counts = {}
    for name, config in model_files().items():
        with torch.device("meta"):
            model = WavLM(config)
        counts[name] = (sum(parameter.numel() for parameter in model.parameters()), len(model.state_dict()))
    assert counts == {
        "base": (94_381_936, 248),
        "base_plus": (94_381_936, 248),
        "large": (315_453_120, 488),
        "small": (23_633_960, 248),
        "nano": (1_663_683, 73),
        "nano_mel": (1_510_979, 70),
    }


def test_the_defaults_are_those_of_base():
    assert WavLMConfig() == model_files()["base"]


def test_buckets_have_the_golden_values():
    golden = {0: 0, 1: 161, -1: 1, 79: 239, -79: 79, 80: 240, 81: 240, 82: 240, -80: 80, -81: 80, -82: 80, 83: 241, 100: 247}
    golden |= {-100: 87, 200: 271, -200: 111, 400: 295, -400: 135, 799: 319, -799: 159, 5000: 319, -5000: 159}
    buckets = relative_buckets(torch.tensor(list(golden)), num_buckets=320, max_distance=800)
    assert buckets.tolist() == list(golden.values())
    everywhere = relative_buckets(torch.arange(-5000, 5001), num_buckets=320, max_distance=800)
    assert sorted(set(everywhere.tolist())) == [bucket for bucket in range(320) if bucket != 160]


def test_the_spread_table_holds_key_minus_query():
    table = torch.arange(2 * 9.0).view(2, 9)
    dense = toeplitz(table)
    assert torch.equal(dense, toeplitz_by_gather(table))
    for query in range(5):
        for key in range(5):
            assert torch.equal(dense[:, query, key], table[:, key - query + 4])


def test_the_gate_starts_near_one_and_three_quarters():
    torch.manual_seed(0)
    model = WavLM(TINY)
    gate = model.encoder.layers[0].attention.bias_gate(torch.randn(2, 5, 32)).detach()
    assert gate.shape == (2, 2, 5)
    assert float((gate - 1.75).abs().max()) < 0.15


def test_the_relative_bias_reaches_the_output():
    model = tiny().eval()
    before = model.extract(waveforms(1, 8_000))[-1]
    with torch.no_grad():
        model.encoder.relative_bias.embedding.weight.zero_()
    assert not torch.allclose(before, model.extract(waveforms(1, 8_000))[-1], atol=1e-3)


def gradients(model: WavLM, **call) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    output = model(waveforms(3, 8_000), torch.tensor([8_000, 5_000, 0]), **call)
    weight = torch.randn(output.final.shape, generator=torch.Generator().manual_seed(4))
    valid = ~output.padding_mask.unsqueeze(-1)
    ((output.final * weight * valid).sum() + output.features.square().mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("pre_norm", [False, True])
def test_sdpa_equals_eager_in_values_and_gradients(pre_norm):
    eager = tiny(pre_norm=pre_norm, attention_backend="eager").train()
    sdpa = tiny(pre_norm=pre_norm, attention_backend="sdpa").train()
    mask = torch.rand(3, 24, generator=torch.Generator().manual_seed(5)) < 0.5
    ours, reference = gradients(sdpa, mask=mask), gradients(eager, mask=mask)
    assert ours.keys() == reference.keys() == dict(eager.named_parameters()).keys()
    largest = max(float(gradient.abs().max()) for gradient in reference.values())
    assert float(reference["encoder.relative_bias.embedding.weight"].abs().max()) > 1e-3 * largest
    for name, gradient in reference.items():  # that of a key's bias is 0 but for rounding
        assert float((ours[name] - gradient).abs().max()) <= 1e-4 * float(gradient.abs().max()) + 1e-6 * largest, name


def test_the_scaled_softmax_holds_products_that_float16_cannot():
    generator = torch.Generator().manual_seed(6)
    query, key = (150 * torch.randn(1, 2, 8, 64, generator=generator) for _ in range(2))
    value, gate, bias = torch.randn(1, 2, 8, 64, generator=generator), torch.ones(1, 2, 8), torch.zeros(2, 8, 8)
    assert not torch.isfinite(query.half() @ key.half().transpose(-1, -2)).all(), "as they are they overflow"
    found = eager_attention(query.half(), key.half(), value.half(), gate, bias, None, dropout=0.0)
    expected = eager_attention(query.half().float(), key.half().float(), value, gate, bias, None, dropout=0.0)
    torch.testing.assert_close(found.float(), expected, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("pre_norm", [False, True])
@pytest.mark.parametrize("recompute", ["extractor", "all"])
def test_recomputing_keeps_less_and_changes_no_bit(pre_norm, recompute):
    """Dropout included: the second computation drops what the first one dropped."""
    found, kept = {}, {}
    for choice in ("none", recompute):
        model = tiny(pre_norm=pre_norm, dropout=0.2, attention_dropout=0.2, input_dropout=0.2, recompute=choice).train()
        sizes: dict[int, int] = {}

        def keep(tensor: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            mask = torch.rand(3, 24, generator=torch.Generator().manual_seed(5)) < 0.5
            output = model(waveforms(3, 8_000), torch.tensor([8_000, 5_000, 4_000]), mask=mask)
            loss = output.final.square().mean() + output.features.square().mean()
        kept[choice] = sum(sizes.values())
        loss.backward()
        found[choice] = {name: p.grad for name, p in model.named_parameters()} | {"loss": loss.detach()}
    assert kept[recompute] < 0.8 * kept["none"]
    assert all(torch.equal(found["none"][name], found[recompute][name]) for name in found["none"])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_equals_eager_in_values():
    eager = tiny(attention_backend="eager").eval()
    flex = tiny(attention_backend="flex").eval()
    num_samples = torch.tensor([8_000, 5_000, 0])
    found, expected = (model.extract(waveforms(3, 8_000), num_samples, with_padding=True) for model in (flex, eager))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=5e-5, rtol=5e-5)


def test_auto_never_changes_the_recipe():
    assert choose_backend("auto") == "sdpa"
    assert choose_backend("eager") == "eager"


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_attention_dropout_acts_in_training_only(backend):
    model = tiny(attention_backend=backend, attention_dropout=0.5)
    first, second = (model.train()(waveforms(1, 8_000)).final for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(model.extract(waveforms(1, 8_000))[-1], model.extract(waveforms(1, 8_000))[-1])
    assert model.training and model.encoder.layers[2].dropout.training


@pytest.mark.parametrize("name", ["dropout", "activation_dropout", "input_dropout"])
def test_each_dropout_acts_in_training(name):
    model = tiny(**{name: 0.5}).train()
    assert not torch.equal(model(waveforms(1, 4_000)).final, model(waveforms(1, 4_000)).final)
    assert torch.equal(tiny().train()(waveforms(1, 4_000)).final, tiny().eval()(waveforms(1, 4_000)).final)


@pytest.mark.parametrize("mode", ["where", "skip"])
def test_a_dropped_layer_is_the_identity_and_gets_no_gradient(mode):
    model = tiny(layer_drop_mode=mode).train()
    keep = torch.tensor([True, False, True])
    states = model(waveforms(1, 8_000), layer_keep=keep).hidden_states
    assert torch.equal(states[2], states[1])
    assert not torch.equal(states[1], states[0]) and not torch.equal(states[3], states[2])
    found = gradients(model, layer_keep=keep)
    dropped = [gradient for name, gradient in found.items() if name.startswith("encoder.layers.1.")]
    assert all(not gradient.any() for gradient in dropped)
    assert len(dropped) == (0 if mode == "skip" else 19)


def test_discarding_a_layer_equals_skipping_it():
    keep = torch.tensor([False, True, False])
    discarded = gradients(tiny(layer_drop_mode="where").train(), layer_keep=keep)
    skipped = gradients(tiny(layer_drop_mode="skip").train(), layer_keep=keep)
    for name, gradient in skipped.items():
        assert torch.equal(gradient, discarded[name]), name


def test_dropping_layer_0_keeps_the_relative_bias():
    model = tiny().train()
    keep = torch.tensor([False, True, True])
    with_bias = model(waveforms(1, 8_000), layer_keep=keep).final
    assert gradients(model, layer_keep=keep)["encoder.relative_bias.embedding.weight"].any()
    with torch.no_grad():
        model.encoder.relative_bias.embedding.weight.zero_()
    assert not torch.allclose(with_bias, model(waveforms(1, 8_000), layer_keep=keep).final, atol=1e-3)


def test_layer_drop_is_ignored_in_evaluation():
    model = tiny().eval()
    none = torch.zeros(3, dtype=torch.bool)
    assert torch.equal(model(waveforms(1, 8_000), layer_keep=none).final, model(waveforms(1, 8_000)).final)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize("norm", ["group", "layer"])
def test_a_row_without_a_valid_frame_gives_finite_values_and_gradients(backend, norm):
    model = tiny(attention_backend=backend, extractor_norm=norm, pre_norm=norm == "layer").train()
    samples = waveforms(3, 8_000)
    samples[1] = 0
    output = model(samples, torch.tensor([8_000, 0, 399]), mask=torch.rand(3, 24) < 0.5)
    assert output.final.isfinite().all() and output.features.isfinite().all()
    assert output.padding_mask.all(1).tolist() == [False, True, True]
    (output.final[~output.padding_mask].square().sum() + 10 * output.features.square().mean()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_a_padded_row_has_the_features_of_the_row_alone(norm, normalised):
    model = tiny(extractor_norm=norm, pre_norm=norm == "layer", normalise_waveform=normalised).eval()
    samples, num_samples = waveforms(4, 8_000), torch.tensor([8_000, 5_000, 200, 5_000])
    padded = samples * (torch.arange(8_000) < num_samples[:, None])
    together = model.extract(padded, num_samples)
    assert [state.shape for state in together] == [(4, num_frames(8_000), model.config.dim)] * (model.config.layers + 1)
    for row in (0, 1, 3):
        length, frames = int(num_samples[row]), num_frames(int(num_samples[row]))
        for state, alone in zip(together, model.extract(samples[row : row + 1, :length]), strict=True):
            assert_close_to_scale(state[row, :frames], alone[0], 1e-5)
    assert all(state.isfinite().all() for state in together)


def test_the_group_norm_sees_padding_where_rows_of_different_lengths_are_run_together():
    differences = []
    for norm in ("group", "layer"):
        model = tiny(extractor_norm=norm).eval()
        padded, num_samples = waveforms(2, 8_000), torch.tensor([8_000, 3_000])
        padded[1, 3_000:] = 0
        together = model.extract(padded, num_samples, with_padding=True)[-1][1, : num_frames(3_000)]
        alone = model.extract(padded[1:, :3_000])[-1][0]
        differences.append(float((together - alone).abs().max() / alone.abs().max()))
    assert differences[0] > 1e-2 and differences[1] < 1e-5


@pytest.mark.parametrize(("norm", "masked"), [("group", False), ("layer", True)])
def test_the_processor_passes_a_mask_only_for_models_that_were_trained_with_one(norm, masked):
    """wav2vec2-base, hubert-base-ls960 and wavlm-base say false (feat_extract_norm=group), the Large ones true (layer)."""
    assert preprocessor_config(tiny(extractor_norm=norm).config)["return_attention_mask"] is masked


def test_masked_frames_carry_nothing_of_the_audio():
    """That they are the mask embedding itself is in `test_encoder_formulas`."""
    model = tiny(extractor_norm="layer").eval()
    everything = torch.ones(1, 24, dtype=torch.bool)
    assert torch.equal(model(waveforms(1, 8_000), mask=everything).final, model(0.5 * waveforms(1, 8_000), mask=everything).final)
    nothing = torch.zeros(1, 24, dtype=torch.bool)
    assert torch.equal(model(waveforms(1, 8_000), mask=nothing).final, model(waveforms(1, 8_000)).final)
    model.train()(waveforms(1, 8_000), mask=nothing).final.sum().backward()
    assert model.mask_embedding.grad is not None
    with pytest.raises(ValueError, match=r"one value for each frame, \(1, 24\), but has shape \(1, 23\)"):
        model(waveforms(1, 8_000), mask=nothing[:, 1:])


def test_the_extractors_gradient_is_scaled_and_the_penalty_with_it():
    """To the rounding of sums in float32 here; bit by bit for a power of two in `test_encoder_formulas`."""
    whole, tenth, frozen = (gradients(tiny(feature_grad_mult=factor).train()) for factor in (1, 0.1, 0))
    for name in (f"extractor.layers.{layer}.conv.weight" for layer in range(7)):
        assert float((tenth[name] - 0.1 * whole[name]).abs().max()) <= 1e-4 * float((0.1 * whole[name]).abs().max()), name
    assert torch.equal(tenth["projection.weight"], whole["projection.weight"])
    assert not any(parameter.startswith("extractor") for parameter in frozen)


def test_until_layer_stops_early_with_the_same_states():
    model = tiny(pre_norm=True).eval()
    complete = model(waveforms(1, 8_000))
    partial = model(waveforms(1, 8_000), until_layer=1)
    assert len(partial.hidden_states) == 2 and torch.equal(partial.hidden_states[1], complete.hidden_states[1])
    assert torch.equal(partial.final, partial.hidden_states[1])
    assert torch.equal(complete.final, model.encoder.norm(complete.hidden_states[-1]))
    first = model(waveforms(1, 8_000), until_layer=0)
    assert len(first.hidden_states) == 1 and torch.equal(first.final, complete.hidden_states[0])
    picked = model.extract(waveforms(1, 8_000), layers=[2, 0])
    for state, layer in zip(picked, (2, 0), strict=True):  # without gradients sdpa takes another kernel
        torch.testing.assert_close(state, complete.hidden_states[layer], atol=5e-5, rtol=5e-5)
    with pytest.raises(ValueError, match="until_layer must lie in 0…3"):
        model(waveforms(1, 8_000), until_layer=4)
    with pytest.raises(ValueError, match="layers must name at least one of 0…3"):
        model.extract(waveforms(1, 8_000), layers=[-1])


def test_waveforms_that_cannot_be_meant_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match="floating point"):
        model(torch.zeros(1, 8_000, dtype=torch.int16))
    with pytest.raises(ValueError, match="at least 400 samples"):
        model(torch.zeros(1, 399))
    assert model(torch.zeros(1, 400)).final.shape == (1, 1, 32)


@pytest.mark.parametrize("norm", ["group", "layer"])
@pytest.mark.parametrize(
    ("num_samples", "sentence"),
    [
        ([8_000, 8_001], "must lie in 0…8000, the samples of a row, but are"),
        ([8_000, -1], "must lie in 0…8000"),
        ([8_000], r"a whole number for each of the 2 rows, but has shape \(1,\)"),
        ([8_000.0, 500.0], "a whole number for each of the 2 rows"),
    ],
)
def test_numbers_of_samples_that_cannot_be_meant_are_refused(norm, num_samples, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny(extractor_norm=norm).extract(torch.zeros(2, 8_000), torch.tensor(num_samples))


@torch.no_grad()
def test_extracting_is_the_forward_pass_in_evaluation_mode_on_normalised_rows():
    model = tiny(normalise_waveform=True, extractor_norm="layer", pre_norm=True, dropout=0.5).train()
    model.encoder.layers[1].eval()
    before = [module.training for module in model.modules()]
    samples, num_samples = 3 * waveforms(2, 6_000) + 1, torch.tensor([6_000, 2_500])
    found = model.extract(samples, num_samples)
    assert [module.training for module in model.modules()] == before
    expected = model.eval()(normalise(samples, num_samples), num_samples)
    assert all(torch.equal(a, b) for a, b in zip(found, expected.hidden_states, strict=True))
    closed = model.extract(samples, num_samples, layers=[1, 3], final_norm=True)
    assert torch.equal(closed[1], expected.final) and torch.equal(closed[0], expected.hidden_states[1])
    assert not torch.allclose(expected.final, expected.hidden_states[3], atol=1e-2)


def test_normalising_covers_valid_samples_only():
    samples = 3 * waveforms(2, 6_000) + 1
    rows = normalise(samples, torch.tensor([6_000, 2_500]))
    torch.testing.assert_close(rows[0], normalise(samples)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(rows[1, :2_500], normalise(samples[1:, :2_500])[0], atol=1e-5, rtol=1e-5)
    assert not rows[1, 2_500:].any()
    assert normalise(samples, torch.tensor([0, 1])).isfinite().all()


def test_extract_normalises_when_the_model_wants_it():
    model = tiny(normalise_waveform=True, extractor_norm="layer", conv_bias=True)
    torch.testing.assert_close(
        model.extract(waveforms(1, 8_000))[-1], model.extract(7 * waveforms(1, 8_000) + 0.5)[-1], atol=1e-2, rtol=1e-2
    )


@torch.no_grad()
def test_initial_weights_have_the_published_spreads_and_depend_on_the_seed_alone():
    torch.manual_seed(7)
    model = WavLM(replace(TINY, dim=128, heads=4, ffn_dim=256, num_buckets=320, max_distance=800))
    for linear in (module for module in model.encoder.modules() if isinstance(module, torch.nn.Linear)):
        assert float(linear.weight.std()) == pytest.approx(0.02, rel=0.1) and not linear.bias.any()
    assert float(model.encoder.relative_bias.embedding.weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(model.encoder.positional.conv.weight.std()) == pytest.approx((4 / (8 * 128)) ** 0.5, rel=0.05)
    assert float(model.extractor.layers[1].conv.weight.std()) == pytest.approx((2 / (16 * 3)) ** 0.5, rel=0.1)
    assert float(model.projection.weight.abs().max()) <= 0.25 and model.projection.bias.any()
    assert float(model.mask_embedding.min()) >= 0 and 0.5 < float(model.mask_embedding.max()) <= 1
    torch.manual_seed(7)
    again = WavLM(model.config)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_gradients_are_bit_equal_from_run_to_run(backend):
    mask = torch.rand(3, 24, generator=torch.Generator().manual_seed(5)) < 0.5
    first = gradients(tiny(attention_backend=backend).train(), mask=mask)
    for _ in range(3):
        again = gradients(tiny(attention_backend=backend).train(), mask=mask)
        assert all(torch.equal(again[name], gradient) for name, gradient in first.items())


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # inductor's own
def test_compiled_layers_give_the_same_gradients_under_the_same_names():
    mask = torch.rand(3, 24, generator=torch.Generator().manual_seed(5)) < 0.5
    keep = torch.tensor([True, False, True])
    reference = gradients(tiny(layers=3).train(), mask=mask, layer_keep=keep)
    model = tiny(layers=3).train()
    model.compile_layers()
    compiled = gradients(model, mask=mask, layer_keep=keep)
    assert compiled.keys() == reference.keys()
    for name, gradient in reference.items():
        assert float((compiled[name] - gradient).abs().max()) <= 1e-4 * float(gradient.abs().max()) + 1e-5, name


@torch.no_grad()
def test_bfloat16_autocast_keeps_norms_gates_and_the_weight_norm_in_float32():
    model = tiny(pre_norm=True).eval()
    reference = model(waveforms(2, 8_000), torch.tensor([8_000, 6_000])).final
    with torch.autocast("cpu", torch.bfloat16):
        assert model.encoder.positional.conv.weight.dtype == torch.float32
        assert model.encoder.layers[0].attention.bias_gate(torch.randn(1, 3, 32)).dtype == torch.float32
        output = model(waveforms(2, 8_000), torch.tensor([8_000, 6_000]))
    relative = (output.final.float() - reference).square().mean().sqrt() / reference.square().mean().sqrt()
    assert float(relative) < 0.05


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv_strides": (5, 2, 2, 2, 2, 2, 1)}, "hop of 320 samples and a receptive field of 400"),
        ({"conv_kernels": (10, 3, 3, 3, 3, 3, 3)}, "hop of 320 samples and a receptive field of 400"),
        ({"conv_dims": (16,) * 6}, "one entry for each convolution"),
        ({"conv_dims": (16,) * 6 + (0,)}, "every entry of conv_dims"),
        ({"heads": 5}, "multiple of heads"),
        ({"positional_groups": 5}, "multiple of positional_groups"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"num_buckets": 30}, "multiple of 4"),
        ({"max_distance": 8}, "max_distance must exceed"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"layer_drop": -0.1}, r"layer_drop must lie in \[0, 1\)"),
        ({"feature_grad_mult": float("inf")}, "feature_grad_mult must be finite and not negative"),
        ({"attention_dropout": 0.01, "attention_backend": "flex"}, "flex cannot drop attention weights"),
        ({"recompute": "layers"}, "recompute must be one of none, extractor, all"),
        ({"num_buckets": 0}, "multiple of 4"),
        ({"feature_grad_mult": -1}, "feature_grad_mult must be finite and not negative"),
        ({"extractor_norm": "batch"}, "extractor_norm must be one of group, layer"),
        ({"attention_backend": "flash"}, "attention_backend must be one of auto, eager, sdpa, flex"),
        ({"layer_drop_mode": "some"}, "layer_drop_mode must be one of where, skip"),
    ],
)
def test_a_config_that_cannot_work_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)


def test_values_at_their_limits_are_allowed():
    replace(TINY, dropout=0.999, layer_drop=0.0, feature_grad_mult=0, num_buckets=4, max_distance=2, attention_backend="flex")
    replace(TINY, num_buckets=32, max_distance=9, heads=32, positional_groups=32, positional_kernel=1, layers=1)


def test_lists_become_tuples():
    assert replace(TINY, conv_dims=[16] * 7) == TINY
    assert hash(replace(TINY, conv_kernels=[10, 3, 3, 3, 3, 2, 2])) == hash(TINY)


def test_equal_models_give_equal_bytes_and_come_back_bit_equal(tmp_path):
    model = tiny(feature_grad_mult=0.1)
    save_huggingface(model, tmp_path / "a", metadata={"b": 1, "a": 2})
    save_huggingface(tiny(feature_grad_mult=0.1), tmp_path / "b", metadata={"a": 2, "b": 1})
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    loaded = openwavlm.load(tmp_path / "a")
    assert loaded.config == model.config and not loaded.training
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_damaged_and_foreign_directories_are_refused_in_a_sentence(tmp_path):
    save_huggingface(tiny(), tmp_path)
    weights, config, preprocessor = (tmp_path / name for name in ("model.safetensors", "config.json", "preprocessor_config.json"))
    complete, described, prepared = weights.read_bytes(), config.read_text(), preprocessor.read_text()
    for damaged in (complete[:-100], complete[:20], b"", b"not a weights file"):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors must be a complete weights file"):
            load_huggingface(tmp_path)
    weights.unlink()
    with pytest.raises(ValueError, match="has none of these"):
        load_huggingface(tmp_path)
    for damaged in (b"", b"not a weights file", b"PK\x03\x04 cut off"):
        (tmp_path / "pytorch_model.bin").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"pytorch_model\.bin must be a complete weights file"):
            load_huggingface(tmp_path)
    weights.write_bytes(complete)
    config.write_text(described.replace('"num_hidden_layers": 3', '"num_hidden_layers": 4'))
    with pytest.raises(ValueError, match=r"lacks 19, first encoder\.layers\.3"):
        load_huggingface(tmp_path)
    config.write_text(described.replace('"num_hidden_layers": 3', '"num_hidden_layers": 2'))
    with pytest.raises(ValueError, match=r"has encoder\.layers\.2"):
        load_huggingface(tmp_path)
    config.write_text(described.replace('"intermediate_size": 64', '"intermediate_size": 65'))
    with pytest.raises(ValueError, match=r"instead of \(65"):
        load_huggingface(tmp_path)
    config.write_text(described.replace('"wavlm"', '"whisper"'))
    with pytest.raises(ValueError, match="model_type must be one of wavlm, hubert, wav2vec2, but is 'whisper'"):
        load_huggingface(tmp_path)
    config.write_text(described[:50])
    with pytest.raises(ValueError, match=r"config\.json is damaged \(no JSON\)"):
        load_huggingface(tmp_path)
    config.unlink()
    with pytest.raises(ValueError, match=r"must hold config\.json"):
        load_huggingface(tmp_path)
    config.write_text(described)
    preprocessor.unlink()
    with pytest.raises(ValueError, match=r"do_normalize must be true or false .* has no value"):
        load_huggingface(tmp_path)
    assert load_huggingface(tmp_path, normalise_waveform=True)[0].config.normalise_waveform
    preprocessor.write_text(prepared)
    load_huggingface(tmp_path)


def test_importing_the_package_imports_no_torch():
    code = "import sys, openwavlm; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "weights in bfloat16"])
@pytest.mark.parametrize(("dim", "kernel", "groups"), [(32, 8, 4), (64, 32, 8), (192, 64, 16), (96, 8, 3), (32, 9, 4)])
def test_the_positional_convolution_is_the_one_of_float64_on_every_cpu_at_low_precision(dim, kernel, groups, whole):
    torch.manual_seed(dim + kernel)
    positional = PositionalConv(dim, kernel, groups)
    positional.initialise()
    x = torch.randn(2, 40, dim).bfloat16().float()
    if whole:
        positional.bfloat16()
    weight = positional.conv.weight.double()
    bias = positional.conv.bias.double()
    expected = torch.nn.functional.conv1d(x.double().transpose(1, 2), weight, bias, padding=kernel // 2, groups=groups)
    expected = torch.nn.functional.gelu(expected[..., :40]).transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        found = positional(x.bfloat16() if whole else x)
    assert float((found.double() - expected).norm() / expected.norm()) < 0.01
    assert whole or torch.equal(found, positional(x)), "in float32"
