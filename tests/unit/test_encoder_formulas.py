"""Each part of the encoder against its formula in float64: gate, attention, dropout and its place, norms, initialisation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from openwavlm.model.attention import GatedAttention, eager_attention, flex_gated_attention, sdpa_attention, toeplitz
from openwavlm.model.config import WavLMConfig
from openwavlm.model.front_ends import scale_gradient
from openwavlm.model.norms import Float32GroupNorm, Float32LayerNorm
from openwavlm.model.transformer import FeedForward, PositionalConv, TransformerEncoder, TransformerLayer
from openwavlm.model.wavlm import WavLM, normalise

CONFIG = WavLMConfig(
    conv_dims=(24, 16, 32),
    conv_kernels=(80, 5, 4),
    conv_strides=(20, 4, 4),
    conv_bias=True,
    dim=48,
    ffn_dim=80,
    heads=3,
    layers=2,
    positional_kernel=10,
    positional_groups=4,
    num_buckets=16,
    max_distance=20,
)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def double(x: Tensor) -> np.ndarray:
    return x.detach().double().numpy()


def drawn(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def randomised(module: nn.Module, scale: float = 1.0) -> nn.Module:
    """Every parameter away from 0 and 1."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return module


def test_the_gate_is_the_papers_formula_with_the_inputs_heads():
    """z = W u + b in 8 numbers; s1, s2 = σ of the sums of four; gate = s1 (s2 a − 1) + 2 (WavLM §III-C)."""
    attention = randomised(GatedAttention(12, 3, dropout=0.0))
    x = drawn(2, 5, 12)
    found = double(attention.bias_gate(x))
    weight, bias, scales = double(attention.gate.weight), double(attention.gate.bias), double(attention.gate_scale)
    assert found.shape == (2, 3, 5)
    for batch in range(2):
        for head in range(3):
            for frame in range(5):
                z = weight @ double(x)[batch, frame, 4 * head : 4 * head + 4] + bias
                update, reset = sigmoid(z[:4].sum()), sigmoid(z[4:].sum())
                expected = update * (reset * scales[0, head, 0, 0] - 1) + 2
                assert found[batch, head, frame] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, gate: Tensor, table: Tensor, padding: Tensor | None
) -> np.ndarray:
    """softmax_j(q_i · k_j / √d + gate_i · table[j − i]) v_j, query by query."""
    q, k, v, g, t = (double(part) for part in (query, key, value, gate, table))
    batch, heads, frames, size = q.shape
    result = np.zeros_like(q)
    for b in range(batch):
        keys = [j for j in range(frames) if padding is None or not padding[b, j]]
        for h in range(heads):
            for i in range(frames):
                logits = np.array(
                    [q[b, h, i] @ k[b, h, j] / math.sqrt(size) + g[b, h, i] * t[h, j - i + frames - 1] for j in keys]
                )
                weights = np.exp(logits - logits.max())
                result[b, h, i] = weights / weights.sum() @ v[b, h, keys]
    return result


def attention_case(scale: float = 1.0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    query, key, value = (drawn(2, 3, 7, 4, seed=seed).to(dtype) for seed in (1, 2, 3))
    gate = 1 + 2 * torch.rand(2, 3, 7, generator=torch.Generator().manual_seed(4))
    return query, key, value, gate, drawn(3, 13, seed=5, scale=scale), torch.arange(7) >= torch.tensor([[7], [4]])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("backend", ["eager", "sdpa", "flex"])
def test_every_backend_is_the_softmax_with_a_gated_bias(backend, padded):
    *inputs, table, padding = attention_case()
    padding = padding if padded else None
    expected = explicit_attention(*inputs, table, padding)
    if backend == "flex":
        found = flex_gated_attention(*inputs, table, padding)
    else:
        attend = eager_attention if backend == "eager" else sdpa_attention
        found = attend(*inputs, toeplitz(table), padding, dropout=0.0)
    np.testing.assert_allclose(double(found), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("backend", [eager_attention, sdpa_attention])
def test_float16_holds_a_relative_bias_that_is_much_larger_than_the_products(backend):
    """Rounded to 11 bits a logit near 100 is off by 0.03, which moves a weight by 3 %."""
    query, key, value, gate, table, padding = attention_case(scale=25.0, dtype=torch.float16)
    expected = explicit_attention(query, key, value, gate, table, padding)
    assert float((gate.amax() * table).abs().max()) > 100
    found = backend(query, key, value, gate, toeplitz(table), padding, dropout=0.0)
    assert found.dtype == torch.float16
    np.testing.assert_allclose(double(found), expected, rtol=0, atol=0.1 if backend is sdpa_attention else 0.02)


@pytest.mark.parametrize("backend", [eager_attention, sdpa_attention])
def test_attention_weights_are_dropped_at_the_asked_rate_and_the_others_scaled_up(backend):
    torch.manual_seed(0)
    frames = 64
    query, key = torch.zeros(4, 2, frames, frames), torch.zeros(4, 2, frames, frames)
    value = torch.eye(frames).expand(4, 2, -1, -1)  # the output is then the matrix of weights, 1/64 each
    found = backend(query, key, value, torch.ones(4, 2, frames), torch.zeros(2, frames, frames), None, dropout=0.3)
    kept = found > 0
    count, share = kept.numel(), float(kept.double().mean())
    assert abs(share - 0.7) < 4 * math.sqrt(0.3 * 0.7 / count)
    np.testing.assert_allclose(double(found[kept]), 1 / frames / 0.7, rtol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_attention_layer_splits_heads_and_joins_them_in_the_same_order(backend):
    attention = randomised(GatedAttention(12, 3, dropout=0.9), scale=0.5).eval()
    x, table = drawn(2, 5, 12), drawn(3, 9, seed=6)
    padding = torch.tensor([[False] * 5, [False, False, False, True, True]])
    parts = []
    for linear in (attention.query, attention.key, attention.value):
        mapped = double(x) @ double(linear.weight).T + double(linear.bias)
        parts.append(torch.from_numpy(mapped.reshape(2, 5, 3, 4).transpose(0, 2, 1, 3)))
    attended = explicit_attention(*parts, attention.bias_gate(x), table, padding).transpose(0, 2, 1, 3).reshape(2, 5, 12)
    expected = attended @ double(attention.output.weight).T + double(attention.output.bias)
    found = attention(x, toeplitz(table), padding, backend=backend)
    np.testing.assert_allclose(double(found), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


# --- where dropout acts: each one is replaced by a known factor ------------------------------------------------------------


class Factor(nn.Module):
    """Stands in a dropout's place."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies."""
        return self.factor * x


class Times(nn.Module):
    """Stands in the attention's place: a linear map of its input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, dim)

    def forward(self, x: Tensor, relative_bias: Tensor, key_padding: Tensor | None, *, backend: str) -> Tensor:
        """Maps."""
        return self.map(x)


def layer_norm(x: np.ndarray, norm: nn.Module) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + 1e-5)
    return scaled * double(norm.weight) + double(norm.bias)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def affine(x: np.ndarray, linear: nn.Linear) -> np.ndarray:
    return x @ double(linear.weight).T + double(linear.bias)


SMALL = {
    "dim": 6,
    "ffn_dim": 10,
    "heads": 2,
    "layers": 2,
    "positional_kernel": 3,
    "positional_groups": 2,
    "num_buckets": 8,
    "max_distance": 10,
    "dropout": 0.1,
    "attention_dropout": 0.2,
    "activation_dropout": 0.3,
    "attention_backend": "eager",
}


def make_layer(*, pre_norm: bool) -> TransformerLayer:
    layer = TransformerLayer(WavLMConfig(**SMALL, pre_norm=pre_norm))
    layer.attention, layer.dropout, layer.feed_forward.dropout = Times(6), Factor(0.5), Factor(0.25)
    return randomised(layer, scale=0.7)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_layer_drops_out_both_branches_and_the_inside_of_the_feed_forward_part(pre_norm):
    """Post-norm: h = LN(x + D attn(x)), y = LN(h + D ffn(h)); pre-norm: h = x + D attn(LN x), y = h + D ffn(LN h)."""
    layer, x = make_layer(pre_norm=pre_norm), drawn(2, 3, 6)

    def feed_forward(h: np.ndarray) -> np.ndarray:
        return affine(0.25 * gelu(affine(h, layer.feed_forward.expand)), layer.feed_forward.contract)

    attention_norm, feed_forward_norm, h = layer.attention_norm, layer.feed_forward_norm, double(x)
    if pre_norm:
        h = h + 0.5 * affine(layer_norm(h, attention_norm), layer.attention.map)
        expected = h + 0.5 * feed_forward(layer_norm(h, feed_forward_norm))
    else:
        h = layer_norm(h + 0.5 * affine(h, layer.attention.map), attention_norm)
        expected = layer_norm(h + 0.5 * feed_forward(h), feed_forward_norm)
    found = layer(x, torch.zeros(1), None, backend="eager")
    np.testing.assert_allclose(double(found), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("kernel", [6, 7])
def test_the_positional_convolution_sums_over_the_taps_around_a_frame(kernel):
    """GELU(b + Σ_t g_t v_t / ‖v_t‖ · x[i + t − ⌊k/2⌋]) within each group of channels; the norm is a tap's."""
    conv = PositionalConv(4, kernel, groups=2)
    randomised(conv)
    x, gain, direction = drawn(2, 9, 4), double(conv.gain), double(conv.direction)
    weight = gain * direction / np.sqrt(np.square(direction).sum(axis=(0, 1), keepdims=True))
    expected = np.zeros((2, 9, 4))
    for frame in range(9):
        for channel in range(4):
            group = slice(2 * (channel // 2), 2 * (channel // 2) + 2)
            for tap in range(kernel):
                place = frame + tap - kernel // 2
                if 0 <= place < 9:
                    expected[:, frame, channel] += double(x)[:, place, group] @ weight[channel, :, tap]
    expected = gelu(expected + double(conv.conv.bias))
    np.testing.assert_allclose(double(conv(x)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def make_encoder(*, pre_norm: bool) -> TransformerEncoder:
    return TransformerEncoder(WavLMConfig(**SMALL, pre_norm=pre_norm))


@pytest.mark.parametrize("pre_norm", [False, True])
def test_the_encoders_input_is_emptied_of_padding_and_gets_positions_then_a_norm_then_dropout(pre_norm):
    encoder = randomised(make_encoder(pre_norm=pre_norm))
    encoder.dropout = Factor(0.5)
    x, padding = drawn(2, 5, 6), torch.tensor([[False] * 5, [False, False, False, True, True]])
    first = encoder(x, padding, until_layer=0)[0]
    kept = x.clone()
    kept[1, 3:] = 0
    expected = double(kept) + double(encoder.positional(kept))
    expected = 0.5 * (expected if pre_norm else layer_norm(expected, encoder.norm))
    np.testing.assert_allclose(double(first), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["group", "layer"])
def test_norms_of_half_precision_round_only_their_result(kind, dtype):
    """(x - mean) / sqrt(var + eps) * w + b in float64; half precision then rounds by at most half a unit in the last place."""
    norm = randomised(Float32GroupNorm(6, 6) if kind == "group" else Float32LayerNorm(40))
    with torch.no_grad():
        norm.weight.add_(1)
    x = (300 + 8 * drawn(3, 6, 40)).to(dtype)
    found = norm(x)
    exact = double(x)
    exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
    columns = (slice(None), None) if kind == "group" else slice(None)
    expected = exact * double(norm.weight)[columns] + double(norm.bias)[columns]
    assert found.dtype == dtype
    bound = torch.finfo(dtype).eps / 2 * np.abs(expected) + 2e-5
    assert (np.abs(double(found) - expected) <= 1.01 * bound).all()


def test_each_probability_of_dropout_reaches_its_place():
    config = replace(CONFIG, dropout=0.1, attention_dropout=0.2, activation_dropout=0.3, input_dropout=0.4)
    model = WavLM(config)
    found = {name: module.p for name, module in model.named_modules() if isinstance(module, nn.Dropout)}
    found |= {name: module.dropout for name, module in model.named_modules() if isinstance(module, GatedAttention)}
    expected = {"input_dropout": 0.4, "encoder.dropout": 0.1}
    for layer in ("encoder.layers.0", "encoder.layers.1"):
        expected |= {f"{layer}.dropout": 0.1, f"{layer}.feed_forward.dropout": 0.3, f"{layer}.attention": 0.2}
    assert found == expected


def encoder_input(model: WavLM, *arguments: Tensor, **named: Tensor) -> Tensor:
    """What the Transformer gets from the rest of the model."""
    seen = []
    handle = model.encoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    model(*arguments, **named)
    handle.remove()
    return seen[0]


def test_masked_frames_are_exactly_the_mask_embedding_and_the_others_the_projected_features():
    model = WavLM(replace(CONFIG, extractor_norm="layer"))
    with torch.no_grad():
        model.mask_embedding.normal_()
    model.input_dropout = Factor(0.5)
    audio, mask = drawn(2, 4000, scale=0.1), torch.rand(2, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    found = encoder_input(model, audio, mask=mask)
    assert torch.equal(found[mask], model.mask_embedding.detach().expand(int(mask.sum()), -1)), "no dropout acts on it"
    features = double(model.extractor(audio)).transpose(0, 2, 1)
    expected = 0.5 * affine(layer_norm(features, model.feature_norm), model.projection)
    np.testing.assert_allclose(double(found[~mask]), expected[~mask.numpy()], rtol=0, atol=1e-5 * np.abs(expected).max())


# --- the extractor -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["group", "layer"])
def test_the_extractor_is_convolutions_of_the_waveform_with_its_norms(norm):
    """`group`: the first layer's channels, each over time; `layer`: every layer's frames, each over channels; then GELU."""
    extractor = WavLM(replace(CONFIG, extractor_norm=norm)).extractor
    randomised(extractor, scale=0.3)
    audio = drawn(2, 720)
    x = double(audio)[:, None]
    for index, layer in enumerate(extractor.layers):
        weight, stride = double(layer.conv.weight), CONFIG.conv_strides[index]
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2], axis=2)[:, :, ::stride]
        x = np.einsum("bctk,dck->bdt", windows, weight) + double(layer.conv.bias)[None, :, None]
        if norm == "layer":
            x = layer_norm(x.transpose(0, 2, 1), layer.norm).transpose(0, 2, 1)
        elif index == 0:
            centred = x - x.mean(2, keepdims=True)
            x = centred / np.sqrt(np.square(centred).mean(2, keepdims=True) + 1e-5)
            x = x * double(layer.norm.weight)[:, None] + double(layer.norm.bias)[:, None]
        else:
            assert layer.norm is None
        x = gelu(x)
    np.testing.assert_allclose(double(extractor(audio)), x, rtol=0, atol=2e-5 * np.abs(x).max())


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_a_scaled_gradient_is_the_factor_times_the_gradient_and_the_value_stays(factor):
    x = drawn(4).requires_grad_()
    y = scale_gradient(x, factor)
    assert torch.equal(y, x)
    y.backward(torch.tensor([1.0, -2.0, 0.0, 5.0]))
    assert x.grad.tolist() == [factor, -2 * factor, 0.0, 5 * factor]


@pytest.mark.parametrize("recompute", ["none", "all"])
def test_the_multiplier_scales_every_gradient_of_the_extractor_and_no_other(recompute):
    """A power of two, so that nothing is rounded: both the prediction's gradient and the penalty's pass through it."""
    found = {}
    for factor in (1.0, 0.25):
        torch.manual_seed(0)
        config = replace(CONFIG, feature_grad_mult=factor, dropout=0, attention_dropout=0, input_dropout=0, recompute=recompute)
        for part in ("prediction", "penalty"):
            torch.manual_seed(0)
            model = WavLM(config).train()
            output = model(drawn(2, 4000))
            (output.final.square().sum() if part == "prediction" else output.features.square().sum()).backward()
            found[factor, part] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    for part in ("prediction", "penalty"):
        whole, quarter = found[1.0, part], found[0.25, part]
        assert whole.keys() == quarter.keys() and "extractor.layers.0.conv.weight" in whole
        for name, gradient in whole.items():
            assert torch.equal(quarter[name], gradient * (0.25 if name.startswith("extractor.") else 1)), name


def test_a_multiplier_of_0_takes_the_extractor_out_of_training():
    model = WavLM(replace(CONFIG, feature_grad_mult=0))
    trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert [name for name in trained if not trained[name]] == [name for name in trained if name.startswith("extractor.")]
    assert all(parameter.requires_grad for parameter in WavLM(replace(CONFIG, feature_grad_mult=1e-9)).parameters())
    assert not model(drawn(1, 800)).features.requires_grad


@pytest.mark.parametrize(("recompute", "extractor", "layer"), [("none", 1, 1), ("extractor", 2, 1), ("all", 2, 2)])
def test_the_backward_pass_computes_again_what_it_was_asked_to(recompute, extractor, layer):
    model, calls = WavLM(replace(CONFIG, recompute=recompute)).train(), {"extractor": 0, "layer": 0}
    for name, part in (("extractor", model.extractor.layers[0]), ("layer", model.encoder.layers[1].feed_forward)):
        part.register_forward_hook(lambda *_, name=name: calls.__setitem__(name, calls[name] + 1))
    model(drawn(1, 800)).final.sum().backward()
    assert calls == {"extractor": extractor, "layer": layer}
    with torch.no_grad():
        model(drawn(1, 800))
    assert calls == {"extractor": extractor + 1, "layer": layer + 1}, "without gradients there is nothing to do again"


# --- norms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norms_are_float32_inside_and_of_their_inputs_type_outside(dtype):
    """A value of 300 has a square that float16 cannot hold; a mean of 300 leaves bfloat16 two bits of what is around it."""
    x = (300 + drawn(2, 6, 40, seed=2)).to(dtype)
    for norm, axis in ((Float32LayerNorm(40), -1), (Float32GroupNorm(6, 6), -1)):
        randomised(norm)
        norm.to(dtype)
        centred = double(x) - double(x).mean(axis, keepdims=True)
        expected = centred / np.sqrt(np.square(centred).mean(axis, keepdims=True) + 1e-5)
        shape = (-1,) if isinstance(norm, Float32LayerNorm) else (-1, 1)
        expected = expected * double(norm.weight).reshape(shape) + double(norm.bias).reshape(shape)
        found = norm(x)
        assert found.dtype == dtype
        # Float32 subtracts the mean of 300 with an error of 2⁻²⁴ · 300; the result is then rounded to its type.
        rounding = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[dtype] + 3e-4
        np.testing.assert_allclose(double(found), expected, rtol=0, atol=rounding * np.abs(expected).max())


@torch.no_grad()
def test_the_residual_stream_stays_float32_under_autocast():
    model = WavLM(CONFIG).eval()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(drawn(1, 4000))
    assert all(state.dtype == torch.float32 for state in output.hidden_states)


def test_a_quiet_row_is_normalised_with_an_epsilon_of_a_hundred_thousandth():
    """The variance of 0.001 is 1e-6: (x − mean) / √(1e-6 + 1e-5), with and without lengths; the divisor is the number of samples."""
    quiet = 0.001 * torch.tensor([1.0, -1.0]).repeat(300)[None] + 0.25
    for lengths in (None, torch.tensor([600])):
        found = normalise(quiet, lengths)
        np.testing.assert_allclose(double(found), double(quiet - 0.25) / math.sqrt(1.1e-5), rtol=1e-3)


# --- initialisation ------------------------------------------------------------------------------------------------------


def check_normal(values: np.ndarray, deviation: float) -> None:
    """Five standard errors of mean and deviation; tails that a uniform distribution has not."""
    count = values.size
    assert abs(values.mean()) < 5 * deviation / math.sqrt(count)
    assert abs(values.std() / deviation - 1) < 5 / math.sqrt(2 * count)
    assert count < 200 or np.abs(values).max() > 2.2 * deviation


def check_uniform(values: np.ndarray, low: float, high: float) -> None:
    count, width = values.size, high - low
    assert values.min() >= low and values.max() <= high
    assert abs(values.mean() - (low + high) / 2) < 5 * width / math.sqrt(12 * count)
    assert abs(values.std() / width * math.sqrt(12) - 1) < 5 / math.sqrt(count)


@pytest.mark.parametrize("changes", [{}, {"extractor_norm": "layer"}, {"front_end": "logmel"}])
def test_every_parameter_is_drawn_as_the_specification_says(changes):
    """SPEC §1.5: N(0, 0.02²) and zero biases in the encoder, He's rule in the extractor, U(±1/√n) in the projection."""
    model = WavLM(replace(CONFIG, **changes))
    with torch.no_grad():
        for parameter in model.parameters():  # whatever was there, as after `to_empty`
            parameter.fill_(math.nan)
    torch.manual_seed(4)
    model.initialise()
    fan_in = {"extractor.layers.0": 1 * 80, "extractor.layers.1": 24 * 5, "extractor.layers.2": 16 * 4}
    checked = set()
    for name, parameter in model.named_parameters():
        values, stem = double(parameter), name.rsplit(".", 1)[0]
        if "norm" in name:
            assert (values == (1 if name.endswith("weight") else 0)).all(), name
        elif stem == "extractor.map":
            check_uniform(values, -1 / math.sqrt(40), 1 / math.sqrt(40))
        elif name.startswith("extractor."):
            if name.endswith("bias"):
                assert not values.any()
            else:
                check_normal(values, math.sqrt(2 / fan_in[stem.removesuffix(".conv")]))
        elif stem == "projection":
            check_uniform(values, -1 / math.sqrt(32), 1 / math.sqrt(32))
        elif name == "mask_embedding":
            check_uniform(values, 0, 1)
        elif name.endswith("gate_scale"):
            assert (values == 1).all()
        elif name.endswith("original1"):
            check_normal(values, math.sqrt(4 / (10 * 48)))
        elif name.endswith("original0"):
            norms = np.sqrt(np.square(double(model.encoder.positional.direction)).sum((0, 1)))
            np.testing.assert_allclose(values.ravel(), norms, rtol=1e-5)
        elif name.endswith("bias"):
            assert not values.any(), name
        else:
            assert name.startswith("encoder.") and name.endswith("weight"), name
            check_normal(values, 0.02)
        checked.add(name)
    assert len(checked) == len(list(model.parameters()))
    matrices = [parameter for parameter in model.parameters() if parameter.shape == (48, 48)]
    assert len(matrices) == 8 and len({float(matrix.detach().sum()) for matrix in matrices}) == 8, "each one has its own draw"


def test_the_feed_forward_part_is_dropped_out_between_its_linear_maps():
    part = randomised(FeedForward(6, 10, dropout=0.3), scale=0.7)
    part.dropout = Factor(2.0)
    x = drawn(3, 6)
    expected = affine(2 * gelu(affine(double(x), part.expand)), part.contract)
    np.testing.assert_allclose(double(part(x)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
