"""An optimiser's state travels by parameter names, whatever the order in which a strategy keeps the parameters."""

import pytest
import torch
from torch import nn

from openwavlm.training.optim import Optim
from openwavlm.training.sharding import state_by_name, state_by_position

OPTIM = Optim(updates=10, warmup_updates=0, decay="matrices")


def stepped(module: nn.Module) -> tuple[torch.optim.Optimizer, list[list[str]]]:
    optimizer = OPTIM.optimizer(module)
    for number, parameter in enumerate(module.parameters()):
        parameter.grad = torch.full_like(parameter, number + 1.0)
    optimizer.step()
    return optimizer, [list(group) for group in OPTIM.groups(module)]


def test_each_name_keeps_the_moments_of_its_parameter():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    optimizer, groups = stepped(module)
    named = state_by_name(optimizer.state_dict(), groups)
    assert groups == [["0.weight", "1.weight"], ["0.bias", "1.bias"]], "not the order of the module's parameters"
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(named["state"][name]["exp_avg"], parameter.grad * 0.1)


def test_a_state_by_name_is_loaded_whatever_the_order_it_was_written_in():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3))
    optimizer, groups = stepped(module)
    named = state_by_name(optimizer.state_dict(), groups)
    named["param_groups"][0]["params"].reverse()
    fresh = OPTIM.optimizer(module)
    fresh.load_state_dict(state_by_position(named, groups))
    for parameter in module.parameters():
        assert torch.equal(fresh.state[parameter]["exp_avg"], optimizer.state[parameter]["exp_avg"])


def test_a_state_of_another_model_or_of_other_groups_is_refused():
    optimizer, groups = stepped(nn.Linear(2, 3))
    named = state_by_name(optimizer.state_dict(), groups)
    with pytest.raises(ValueError, match=r"does not fit this model \(other, weight\)"):
        state_by_position(named, [["other"], ["bias"]])
    with pytest.raises(ValueError, match=r"the same parameters in other groups"):
        state_by_position(named, [["bias"], ["weight"]])
