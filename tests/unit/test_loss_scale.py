"""The loss's scale in float16, and updates whose gradient is not finite."""

import pytest
import torch

from openwavlm.batches.batch import MicroBatchId
from openwavlm.training.skipped_updates import LossScale, SkippedUpdates


def test_a_skipped_update_halves_the_scale_and_two_thousand_sound_ones_in_a_row_double_it():
    """fairseq begins with 2⁷; the interval is that of Micikevicius et al. 2018, §3.2."""
    scale, sound, void = LossScale(), torch.tensor(0.0), torch.tensor(1.0)
    assert float(scale.scale) == 128
    for _ in range(1_999):
        scale.update(sound)
    scale.update(void)
    assert float(scale.scale) == 64
    for _ in range(1_999):
        scale.update(sound)
    assert float(scale.scale) == 64, "the count begins anew with every void update"
    scale.update(sound)
    assert float(scale.scale) == 128 and int(scale.growth) == 0


def test_unscaling_divides_by_the_present_scale_changes_no_digit_and_keeps_what_is_not_finite():
    scale = LossScale()
    for _ in range(2):
        scale.update(torch.tensor(1.0))
    gradients = [torch.tensor([0.1, -3.7]), torch.tensor([[float("inf")]])]
    scaled = [gradient * 32 for gradient in gradients]
    scale.unscale(scaled)
    assert all(torch.equal(a, b) for a, b in zip(scaled, gradients, strict=True))


def test_the_scale_is_part_of_the_state():
    scale, other = LossScale(), LossScale()
    scale.update(torch.tensor(1.0))
    other.load_state_dict(scale.state_dict())
    assert torch.equal(other.scale, scale.scale) and set(scale.state_dict()) == {"scale", "growth"}


def of(*losses: float) -> list[tuple[MicroBatchId, torch.Tensor]]:
    return [(MicroBatchId("speech", 2, 0, number + 5), torch.tensor(loss)) for number, loss in enumerate(losses)]


def test_a_skipped_update_is_named_with_its_step_and_its_micro_batch(caplog):
    SkippedUpdates(0.01).check(17, float("nan"), of(3.0, float("nan"), 2.0))
    assert "update 17 was skipped" in caplog.text and "speech epoch 2 stream 0 micro-batch 6" in caplog.text
    assert "micro-batch 5" not in caplog.text and "micro-batch 7" not in caplog.text


def test_an_overflow_in_the_gradient_alone_is_told_apart(caplog):
    SkippedUpdates(0.01).check(17, float("inf"), of(3.0))
    assert "all losses on this rank are finite, so a gradient overflowed" in caplog.text


def test_too_many_skipped_updates_are_an_error_and_sound_ones_are_not_counted():
    skipped = SkippedUpdates(0.01)
    for step in range(1, 21):
        skipped.check(step, float("nan"), of(1.0))
    skipped.check(21, 1.0, of(1.0))
    with pytest.raises(ValueError, match=r"21 of 22 updates were skipped, more than optim\.max_skip_rate=0\.01 allows"):
        skipped.check(22, float("nan"), of(1.0))
    with pytest.raises(ValueError, match="1 of 3 updates were skipped"):
        SkippedUpdates(0.0).check(3, float("nan"), of(1.0))
    patient = SkippedUpdates(0.01)
    patient.count = 20
    patient.check(2_100, float("nan"), of(1.0))
    assert patient.count == 21
