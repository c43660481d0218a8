"""A checkpoint's tensors for a module that has or lacks a running mean or a scale of the loss."""

import pytest
import torch
from torch import nn

from openwavlm.training.sharding import fitting_weights
from openwavlm.training.skipped_updates import LossScale


def module(*, ema: bool = False, scale: bool = False) -> nn.Module:
    made = nn.Module()
    made.model = nn.Linear(2, 3)
    if ema:
        made.ema = nn.Linear(2, 3)
    if scale:
        made.loss_scale = LossScale()
    return made


def test_what_the_module_lacks_is_left_out_and_the_rest_is_the_checkpoints():
    saved = module(ema=True, scale=True).state_dict()
    found = fitting_weights(saved, module())
    assert set(found) == {"model.weight", "model.bias"} and all(found[name] is saved[name] for name in found)


def test_a_running_mean_begins_with_the_checkpoints_weights_and_a_scale_with_its_first_value():
    saved, target = module().state_dict(), module(ema=True, scale=True)
    found = fitting_weights(saved, target)
    assert set(found) == set(target.state_dict())
    assert torch.equal(found["ema.weight"], saved["model.weight"]) and torch.equal(found["ema.bias"], saved["model.bias"])
    assert float(found["loss_scale.scale"]) == 128 and int(found["loss_scale.growth"]) == 0


def test_what_both_have_is_the_checkpoints():
    saved = module(ema=True, scale=True)
    saved.loss_scale.scale.fill_(7)
    found = fitting_weights(saved.state_dict(), module(ema=True, scale=True))
    assert float(found["loss_scale.scale"]) == 7
    assert torch.equal(found["ema.weight"], saved.ema.weight) and not torch.equal(found["ema.weight"], saved.model.weight)


def test_tensors_of_another_model_are_refused():
    saved = module().state_dict()
    for changed, name in (
        ({**saved, "model.more": torch.zeros(1)}, "model.more"),
        ({"model.weight": saved["model.weight"]}, "model.bias"),
        ({**saved, "model.weight": torch.zeros(2, 3)}, "model.weight"),
    ):
        with pytest.raises(ValueError, match=rf"the checkpoint is of another model \(1 tensors differ, first {name}\)"):
            fitting_weights(changed, module())
