"""Which parts FSDP2 shards, when their gradients are reduced, and which weights a sharded launch resumes with; without processes."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from openwavlm.training import module as training
from openwavlm.training import sharding
from openwavlm.training.optim import Optim
from openwavlm.training.settings import Loss
from openwavlm.training.sharding import ShardedStrategy, set_gradient_sync, shard_model
from steps import model, training_module


def test_layers_encoder_and_head_are_sharded_from_the_inside_and_features_gather_their_weights(monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(sharding, "fully_shard", lambda part, mesh: calls.append((part, mesh)))
    monkeypatch.setattr(sharding, "register_fsdp_forward_method", lambda part, name: calls.append((part, name)))
    learner = model()
    shard_model(learner, "mesh")
    layers = [(layer, "mesh") for layer in learner.wavlm.encoder.layers]
    assert len(layers) == 3 and calls == [*layers, (learner.wavlm, "mesh"), (learner, "mesh"), (learner.wavlm, "extract")]


def test_the_model_its_running_mean_and_the_log_mel_map_are_sharded_over_the_processes(monkeypatch):
    calls: list[Any] = []
    monkeypatch.setattr(training, "shard_model", lambda part, mesh: calls.append((part, mesh)))
    monkeypatch.setattr(training, "fully_shard", lambda part, mesh: calls.append((part, mesh)))
    module = training_module(model(), optim=Optim(updates=9, warmup_updates=0, ema=0.9), loss=Loss(logmel=0.1))
    module.configure_model()
    assert calls == [], "nothing is sharded without a mesh"
    module._device_mesh = {"data_parallel": "mesh", "tensor_parallel": "other"}
    module.configure_model()
    assert calls == [(part, "mesh") for part in (module.model, module.ema, module.logmel_map)]


class Sharded(nn.Linear):
    """A part that notes whether its gradients are to be reduced."""

    def set_requires_gradient_sync(self, wanted: bool, *, recurse: bool) -> None:
        """Notes it."""
        self.noted = (wanted, recurse)


@pytest.mark.parametrize("wanted", [True, False])
def test_the_gradients_of_every_sharded_part_are_reduced_or_none(monkeypatch, wanted):
    monkeypatch.setattr(sharding, "FSDPModule", Sharded)
    whole = Sharded(1, 1)
    whole.inner = nn.Sequential(nn.Linear(1, 1), Sharded(1, 1))
    set_gradient_sync(whole, wanted=wanted)
    assert (whole.noted, whole.inner[1].noted) == ((wanted, False), (wanted, False))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_sharded_launch_resumes_with_the_weights_that_fit_it_read_on_the_first_rank(monkeypatch, tmp_path, rank):
    module = nn.Module()
    module.model, module.ema = nn.Linear(2, 3), nn.Linear(2, 3)
    weight, bias = torch.full((3, 2), 4.0), torch.full((3,), 5.0)
    saved = {"model.weight": weight, "model.bias": bias, "loss_scale.scale": torch.tensor(8.0)}  # float16, and no running mean
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": saved, "optimizer_states": [{"state": 7}], "openwavlm": {"step": 3}}, path)
    calls: list[Any] = []
    monkeypatch.setattr(sharding, "set_model_state_dict", lambda part, state, options: calls.append((part, state, options)))
    monkeypatch.setattr(
        sharding, "set_optimizer_state_dict", lambda part, optimizer, state, options: calls.append((optimizer, state, options))
    )
    strategy: Any = SimpleNamespace(broadcast=lambda value: value, model=module, global_rank=rank, optimizers=["adamw"])
    assert ShardedStrategy.load_checkpoint(strategy, path) == {"openwavlm": {"step": 3}}
    (part, weights, options), (optimizer, state, _) = calls
    assert part is module and optimizer == "adamw" and state == ({"state": 7} if rank == 0 else {})
    assert set(weights) == (set(module.state_dict()) if rank == 0 else set())
    for name, tensor in weights.items():
        assert torch.equal(tensor, weight if name.endswith("weight") else bias), name
    assert options.full_state_dict and options.broadcast_from_rank0 and options.strict
