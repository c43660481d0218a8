"""The pre-training head on a tiny encoder: which frames it sees, what it returns, and that nothing breaks without frames."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from openwavlm.model.config import Head
from openwavlm.model.losses import cosine_logits
from openwavlm.model.pretraining import WavLMForPretraining


class TinyEncoder(nn.Module):
    """Two linear maps over pieces of 4 samples, with the interface of the real encoder."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(dim=6)
        self.features = nn.Linear(4, 5)
        self.layer = nn.Linear(5, 6)
        self.mask_embedding = nn.Parameter(torch.rand(5))
        self.seen = None

    def forward(self, waveforms, num_samples=None, *, mask=None, layer_keep=None):
        self.seen = (num_samples, layer_keep)
        features = self.features(waveforms.unflatten(1, (-1, 4)))
        hidden = features if mask is None else torch.where(mask[..., None], self.mask_embedding, features)
        return SimpleNamespace(final=self.layer(hidden), features=features.transpose(1, 2))


def case(**settings):
    torch.manual_seed(0)
    model = WavLMForPretraining(TinyEncoder(), Head(final_dim=3, **settings), num_classes=7)
    mask = torch.rand(2, 10) < 0.5
    labels = torch.randint(7, (2, 10), dtype=torch.int32)
    masked, unmasked = mask.flatten().nonzero()[:, 0], (~mask).flatten().nonzero()[:, 0]
    inputs = (torch.randn(2, 40), torch.tensor([40, 40]), mask, masked, [labels.flatten()[masked]])
    return model, inputs, (unmasked, [labels.flatten()[unmasked]])


def test_the_loss_covers_the_indexed_frames_and_no_others():
    model, (waveforms, num_samples, mask, masked, (labels,)), _ = case()
    output = model(waveforms, num_samples, mask, masked, [labels])
    projected = model.final_proj(model.wavlm(waveforms, mask=mask).final).flatten(0, 1)
    log_probabilities = cosine_logits(projected, model.label_embeddings, 0.1).log_softmax(-1)
    expected = -sum(log_probabilities[i, z] for i, z in zip(masked.tolist(), labels.tolist(), strict=True))
    torch.testing.assert_close(output.sets[0].cross_entropy_sum, expected)
    assert int(output.sets[0].num_correct) == sum(
        int(log_probabilities[i].argmax()) == z for i, z in zip(masked.tolist(), labels.tolist(), strict=True)
    )
    torch.testing.assert_close(output.feature_penalty, model.wavlm(waveforms).features.square().mean())
    assert output.sets[0].unmasked_cross_entropy_sum is output.sets[0].num_unmasked_correct is None


def test_unmasked_frames_are_measured_without_changing_loss_or_gradients():
    model, inputs, unmasked = case()
    plain = model(*inputs)
    plain.sets[0].cross_entropy_sum.backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    measured = model(*inputs, None, *unmasked)
    assert not measured.sets[0].unmasked_cross_entropy_sum.requires_grad
    assert measured.sets[0].unmasked_cross_entropy_sum.item() > 0
    assert 0 <= int(measured.sets[0].num_unmasked_correct) <= len(unmasked[0])
    measured.sets[0].cross_entropy_sum.backward()
    assert torch.equal(plain.sets[0].cross_entropy_sum, measured.sets[0].cross_entropy_sum)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, gradient)


def test_without_masked_frames_loss_and_gradients_are_zero_and_every_parameter_has_one():
    model, (waveforms, num_samples, mask, masked, (labels,)), _ = case()
    output = model(waveforms, num_samples, mask, masked[:0], [labels[:0]])
    assert (output.sets[0].cross_entropy_sum.item(), int(output.sets[0].num_correct)) == (0.0, 0)
    assert torch.isfinite(output.feature_penalty)
    output.sets[0].cross_entropy_sum.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_lengths_and_layer_draws_reach_the_encoder():
    model, inputs, _ = case()
    keep = torch.tensor([True])
    model(*inputs, layer_keep=keep)
    assert model.wavlm.seen[0] is inputs[1]
    assert model.wavlm.seen[1] is keep


def test_special_rows_are_wrong_answers_in_front_of_the_labels():
    model, inputs, _ = case(special_rows=4)
    assert model.label_embeddings.shape == (11, 3)
    with_specials = model(*inputs).sets[0].cross_entropy_sum
    model.label_embeddings = nn.Parameter(model.label_embeddings.detach()[4:])
    model.special_rows = 0
    assert with_specials.item() > model(*inputs).sets[0].cross_entropy_sum.item()


@pytest.mark.parametrize(("label_init", "mean", "deviation"), [("uniform", 0.5, 12**-0.5), ("normal", 0.0, 1.0)])
def test_label_embeddings_are_drawn_as_asked(label_init, mean, deviation):
    torch.manual_seed(0)
    model = WavLMForPretraining(TinyEncoder(), Head(final_dim=64, label_init=label_init), num_classes=500)
    assert model.label_embeddings.mean().item() == pytest.approx(mean, abs=0.02)
    assert model.label_embeddings.std().item() == pytest.approx(deviation, abs=0.02)


def test_a_model_on_the_meta_device_gets_the_same_head_when_it_is_initialised_later():
    with torch.device("meta"):
        later = WavLMForPretraining(TinyEncoder(), Head(final_dim=3), num_classes=7)
    assert later.label_embeddings.is_meta
    torch.manual_seed(3)
    later.to_empty(device="cpu").initialise_head()
    torch.manual_seed(3)
    assert torch.equal(later.final_proj.weight, nn.Linear(6, 3).weight)
    assert torch.equal(later.label_embeddings, torch.rand(7, 3))


def test_every_label_set_has_a_head_of_its_size_that_initialising_draws_anew():
    model = WavLMForPretraining(TinyEncoder(), Head(final_dim=3, special_rows=4), num_classes=[7, 5])
    assert [head.label_embeddings.shape for head in model.heads()] == [(11, 3), (9, 3)] and model.num_classes == 7
    with torch.no_grad():
        for head in model.heads():
            for parameter in (head.final_proj.weight, head.final_proj.bias, head.label_embeddings):
                parameter.fill_(float("nan"))
    model.initialise_head()
    for head in model.heads():
        for parameter in (head.final_proj.weight, head.final_proj.bias):  # torch's own rule for a linear map of 6 inputs
            assert parameter.isfinite().all() and float(parameter.detach().abs().max()) <= 6**-0.5
        labels = head.label_embeddings.detach()
        assert float(labels.min()) >= 0 and float(labels.max()) <= 1
    assert not torch.equal(model.final_proj.weight, model.other_heads[0].final_proj.weight)


def test_the_head_has_the_published_number_of_parameters():
    for dim, final_dim, count in ((768, 256, 196_864 + 129_024), (1024, 768, 787_200 + 387_072)):
        encoder = TinyEncoder()
        encoder.config.dim = dim
        model = WavLMForPretraining(encoder, Head(final_dim=final_dim, special_rows=4), num_classes=500)
        assert sum(p.numel() for name, p in model.named_parameters() if not name.startswith("wavlm.")) == count


def test_the_logits_are_float32_under_autocast():
    model, inputs, _ = case()
    exact = model(*inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(*inputs)
    assert output.sets[0].cross_entropy_sum.dtype == output.feature_penalty.dtype == torch.float32
    torch.testing.assert_close(output.sets[0].cross_entropy_sum, exact.sets[0].cross_entropy_sum, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"num_classes": [7, 0]}, "num_classes must be at least 1, but is 0"),
        ({"num_classes": 0}, "num_classes must be at least 1, but is 0"),
        ({"final_dim": 0}, "final_dim must be at least 1, but is 0"),
        ({"special_rows": -1}, "special_rows must be at least 0, but is -1"),
        ({"logit_temperature": 0.0}, "logit_temperature must be positive, but is 0.0"),
        ({"label_init": "zeros"}, "label_init must be one of uniform, normal, but is 'zeros'"),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(setting, message):
    setting = {"num_classes": 7, **setting}
    with pytest.raises(ValueError, match=message):
        WavLMForPretraining(TinyEncoder(), num_classes=setting.pop("num_classes"), head=Head(**setting))
