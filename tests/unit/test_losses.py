"""The loss equals fairseq's contrastive form in value, gradient and hits; it is float32; no frames give a connected zero."""

import pytest
import torch

from closeness import assert_close_to_scale
from openwavlm.model.losses import cosine_logits, feature_penalty, masked_prediction


def contrastive_form(projected, label_embeddings, labels, temperature):
    """fairseq's form: the positive in front of all classes, its double struck out, target 0 (SPEC §2.3)."""
    positives = label_embeddings[labels]
    candidates = torch.cat([positives[None], label_embeddings[:, None].expand(-1, len(labels), -1)])
    logits = torch.cosine_similarity(projected[None], candidates, dim=-1, eps=1e-8) / temperature
    doubles = torch.cat([torch.zeros(1, len(labels), dtype=torch.bool), (candidates[1:] == positives).all(-1)])
    logits = logits.masked_fill(doubles, float("-inf")).T
    loss = torch.logsumexp(logits, dim=1) - logits[:, 0]
    hits = (logits.argmax(1) == 0) & ~((logits.argmax(1) == 0) & (logits.argmin(1) == 0))
    return loss.sum(), hits.sum()


def random_case(frames=40, dim=16, classes=23, seed=0):
    generator = torch.Generator().manual_seed(seed)
    projected = torch.randn(frames, dim, generator=generator, dtype=torch.float32)
    label_embeddings = torch.rand(classes, dim, generator=generator)
    labels = torch.randint(classes, (frames,), generator=generator)
    # Some frames point at their label, so that there are hits.
    projected[::3] += 5 * label_embeddings[labels[::3]]
    return projected.requires_grad_(), label_embeddings.requires_grad_(), labels


@pytest.mark.parametrize("seed", range(3))
def test_the_loss_equals_the_contrastive_form_in_value_gradient_and_hits(seed):
    projected, label_embeddings, labels = random_case(seed=seed)
    ours, hits = masked_prediction(cosine_logits(projected, label_embeddings, 0.1), labels)
    theirs, their_hits = contrastive_form(projected, label_embeddings, labels, 0.1)
    torch.testing.assert_close(ours, theirs)
    assert 0 < int(hits) == int(their_hits) < len(labels)
    gradients = torch.autograd.grad(ours, (projected, label_embeddings))
    for gradient, their_gradient in zip(gradients, torch.autograd.grad(theirs, (projected, label_embeddings)), strict=True):
        assert_close_to_scale(gradient, their_gradient)


def test_logits_are_cosines_over_the_temperature():
    logits = cosine_logits(torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, -5.0]]), 0.1)
    torch.testing.assert_close(logits, torch.tensor([[10.0, 0.0], [50**0.5, -(50**0.5)]]))


def test_logits_stay_float32_under_autocast():
    projected, label_embeddings, _ = random_case()
    exact = cosine_logits(projected, label_embeddings, 0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(cosine_logits(projected, label_embeddings, 0.1), exact)
        assert cosine_logits(projected.bfloat16(), label_embeddings, 0.1).dtype == torch.float32


def test_a_frame_of_zeros_has_zero_logits():
    assert torch.equal(cosine_logits(torch.zeros(2, 4), torch.rand(3, 4), 0.1), torch.zeros(2, 3))


def test_the_loss_is_a_sum_over_frames():
    projected, label_embeddings, labels = random_case()
    logits = cosine_logits(projected, label_embeddings, 0.1)
    whole, hits = masked_prediction(logits, labels)
    parts = [masked_prediction(logits[part], labels[part]) for part in (slice(0, 11), slice(11, None))]
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0])
    assert hits == parts[0][1] + parts[1][1]


def test_labels_may_be_int32():
    projected, label_embeddings, labels = random_case()
    logits = cosine_logits(projected, label_embeddings, 0.1)
    assert torch.equal(masked_prediction(logits, labels)[0], masked_prediction(logits, labels.int())[0])


def test_no_frames_give_a_zero_that_is_connected_to_the_graph():
    projected, label_embeddings = torch.zeros(0, 16, requires_grad=True), torch.rand(7, 16, requires_grad=True)
    loss, hits = masked_prediction(cosine_logits(projected, label_embeddings, 0.1), torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert (loss.item(), int(hits)) == (0.0, 0)
    assert torch.equal(label_embeddings.grad, torch.zeros(7, 16))


def test_the_feature_penalty_is_the_mean_square_in_float32():
    features = torch.full((2, 8, 30), 3.0, dtype=torch.bfloat16)
    features[0, 0, 0] = 0
    penalty = feature_penalty(features)
    assert penalty.dtype == torch.float32
    assert float(penalty) == pytest.approx(9 * 479 / 480)


def test_the_feature_penalty_of_no_frames_is_zero():
    assert float(feature_penalty(torch.zeros(2, 8, 0))) == 0
