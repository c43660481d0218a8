"""The log-mel front end stands exactly where the waveform extractor does, and is told from it where that matters."""

import dataclasses

import pytest
import torch

from closeness import assert_close_to_scale
from openwavlm.audio.frames import num_frames
from openwavlm.audio.spectra import NUM_BANDS, normalised_log_mel
from openwavlm.checkpoints.huggingface import save_huggingface
from openwavlm.model.config import Head, WavLMConfig
from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.model.wavlm import WavLM
from openwavlm.training.forward import logmel_error
from openwavlm.training.settings import Loss
from steps import training_module

MEL = WavLMConfig(
    front_end="logmel",
    conv_dims=(8,) * 7,
    dim=16,
    ffn_dim=32,
    heads=2,
    layers=2,
    pre_norm=True,
    positional_kernel=8,
    positional_groups=2,
    dropout=0,
    attention_dropout=0,
    input_dropout=0,
    layer_drop=0,
    feature_grad_mult=1.0,
)
CONV = dataclasses.replace(MEL, front_end="conv")


def model(config: WavLMConfig = MEL, seed: int = 0) -> WavLM:
    torch.manual_seed(seed)
    return WavLM(config)


def waveforms(rows: int, samples: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(rows, samples, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize("samples", [400, 719, 720, 721, 3999, 16_000, 20_011])
def test_both_front_ends_give_the_same_frames_and_channels(samples: int):
    audio = waveforms(2, samples)
    shapes = {config.front_end: model(config)(audio).features.shape for config in (MEL, CONV)}
    assert shapes["logmel"] == shapes["conv"] == (2, 8, num_frames(samples))


def test_the_features_are_a_linear_map_of_the_normalised_log_mels():
    audio, encoder = waveforms(2, 8000), model()
    expected = normalised_log_mel(audio) @ encoder.extractor.map.weight.T + encoder.extractor.map.bias
    torch.testing.assert_close(encoder(audio).features.transpose(1, 2), expected)
    assert sum(p.numel() for p in encoder.extractor.parameters()) == 8 * (NUM_BANDS + 1)


def test_a_padded_row_equals_the_same_row_alone():
    # Unlike with the group norm of the convolutions: the bands are normalised over valid frames only.
    short, long = waveforms(1, 6000, seed=1), waveforms(1, 9000, seed=2)
    padded = torch.cat([torch.nn.functional.pad(short, (0, 3000)), long])
    encoder = model().eval()
    together = encoder(padded, torch.tensor([6000, 9000])).final
    assert_close_to_scale(together[:1, : num_frames(6000)], encoder(short).final)
    loud = padded.clone()
    loud[0, 6000:] = 0.4  # what lies beyond the valid samples is never heard
    assert_close_to_scale(encoder(loud, torch.tensor([6000, 9000])).final[0, :17], together[0, :17])


def test_equal_seeds_draw_equal_models_and_the_map_is_drawn_within_its_bound():
    first, again, other = model(), model(), model(seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.extractor.map.weight, other.extractor.map.weight)
    assert 0 < first.extractor.map.weight.abs().max() <= NUM_BANDS**-0.5


def test_the_gradient_multiplier_scales_the_map_and_zero_freezes_it():
    gradients = []
    for factor in (1.0, 0.25):
        encoder = model(dataclasses.replace(MEL, feature_grad_mult=factor))
        encoder(waveforms(1, 4000)).final.square().sum().backward()
        gradients.append(encoder.extractor.map.weight.grad)
    torch.testing.assert_close(gradients[0] * 0.25, gradients[1])
    assert gradients[0].abs().max() > 0
    assert not any(p.requires_grad for p in model(dataclasses.replace(MEL, feature_grad_mult=0.0)).extractor.parameters())


def test_the_feature_penalty_and_the_warm_up_loss_reach_the_map():
    learner = WavLMForPretraining(model(), Head(final_dim=8), num_classes=5)
    module = training_module(learner, loss=Loss(logmel=1.0))
    audio, num_samples = waveforms(2, 4000), torch.tensor([4000, 3000])
    output = learner(audio, num_samples, None, torch.tensor([0, 3]), [torch.tensor([1, 2])])
    for loss in (output.feature_penalty, logmel_error(module.logmel_map, output.features, audio, num_samples)):
        (gradient,) = torch.autograd.grad(loss, learner.wavlm.extractor.map.weight, retain_graph=True)
        assert torch.isfinite(gradient).all() and gradient.abs().max() > 0


def test_such_a_model_cannot_be_exported_and_nothing_is_written(tmp_path):
    with pytest.raises(ValueError, match=r"this model's is logmel; train with") as refusal:
        save_huggingface(model(), tmp_path / "export")
    assert "\n" not in str(refusal.value) and not list((tmp_path / "export").iterdir())
    save_huggingface(model(CONV), tmp_path / "export")


def test_another_front_end_is_refused_by_name():
    with pytest.raises(ValueError, match="front_end must be one of conv, logmel, but is 'mfcc'"):
        dataclasses.replace(MEL, front_end="mfcc")
