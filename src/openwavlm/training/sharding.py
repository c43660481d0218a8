"""FSDP2 under Lightning: parameters, gradients and moments in shards, checkpoints whole, so that any strategy resumes any other.

Checkpoints key AdamW's state by name; Lightning keys it by position, which differs between strategies with two parameter groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

from openwavlm.model.pretraining import WavLMForPretraining
from openwavlm.training.checkpoint_reader import load

_MODEL, _MEAN, _SCALE = "model.", "ema.", "loss_scale."


def shard_model(model: WavLMForPretraining, mesh: DeviceMesh) -> None:
    """Shards every encoder layer, the rest of the encoder, and the head as one group each, in place."""
    for layer in model.wavlm.encoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model.wavlm, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # Probes and exports call `extract`, not `forward`.
    register_fsdp_forward_method(model.wavlm, "extract")


def set_gradient_sync(module: nn.Module, *, wanted: bool) -> None:
    """Switches the reduction of gradients over ranks in the next backward on or off, in all sharded parts of `module`."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.set_requires_gradient_sync(wanted, recurse=False)


def state_by_name(state: dict[str, Any], groups: Sequence[Iterable[str]]) -> dict[str, Any]:
    """The `state` of `Optimizer.state_dict`, keyed by parameter names; `groups` are the names of each group, in the optimiser's order."""
    names: dict[Any, str] = {}
    for group, named in zip(state["param_groups"], groups, strict=True):
        names |= dict(zip(group["params"], named, strict=True))
    return {
        "state": {names.get(key, key): value for key, value in state["state"].items()},
        "param_groups": [{**group, "params": list(named)} for group, named in zip(state["param_groups"], groups, strict=True)],
    }


def state_by_position(state: dict[str, Any], groups: Sequence[Iterable[str]]) -> dict[str, Any]:
    """The inverse of `state_by_name`.

    Raises:
        ValueError: If the state is of other parameters or groups.
    """
    saved = [group["params"] for group in state["param_groups"]]
    if [set(names) for names in saved] != [set(names) for names in groups]:
        known, wanted = {name for names in saved for name in names}, {name for names in groups for name in names}
        odd = ", ".join(sorted(known ^ wanted)[:5]) or "the same parameters in other groups (optim.decay)"
        raise ValueError(
            f"the checkpoint's optimiser does not fit this model ({odd}): restore the config, or start a new run under another name"
        )
    positions = {name: place for place, name in enumerate(name for names in groups for name in names)}
    return {
        "state": {positions[name]: value for name, value in state["state"].items()},
        "param_groups": [
            {**group, "params": [positions[name] for name in names]}
            for group, names in zip(state["param_groups"], groups, strict=True)
        ],
    }


def fitting_weights(weights: Mapping[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors of the module: those of precision=16-mixed (`loss_scale`) and of optim.ema (`ema`) are added or left out.

    A new running mean begins with the weights, a new loss scale with its initial value.

    Raises:
        ValueError: If they are of another model.
    """
    wanted = module.state_dict()
    found = {name: tensor for name, tensor in weights.items() if name in wanted or not name.startswith((_MEAN, _SCALE))}
    for name, tensor in wanted.items():
        if name not in found and name.startswith(_MEAN):
            found[name] = weights.get(_MODEL + name.removeprefix(_MEAN), tensor)
        elif name not in found and name.startswith(_SCALE):
            found[name] = tensor
    odd = sorted(found.keys() ^ wanted.keys()) or sorted(name for name in wanted if found[name].shape != wanted[name].shape)
    if odd:
        raise ValueError(
            f"the checkpoint is of another model ({len(odd)} tensors differ, first {odd[0]}): restore model, head and loss of the config, "
            "or start a new run under another name"
        )
    return found


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's FSDP2 strategy over all processes, with one whole checkpoint file."""

    def __init__(self) -> None:
        super().__init__(data_parallel_size="auto", tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        """Makes the mesh of all processes."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        """The whole state by parameter names, on rank 0; empty elsewhere."""
        assert self.model is not None
        inner = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return get_optimizer_state_dict(self.model, inner, options=StateDictOptions(full_state_dict=True, cpu_offload=True))

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:  # noqa: FBT001
        """Reads a whole checkpoint of any strategy on rank 0 and gives every rank its shards."""
        path = Path(self.broadcast(checkpoint_path))
        checkpoint = load(path)
        assert self.model is not None
        weights: dict[str, Any] = fitting_weights(checkpoint.pop("state_dict"), self.model)
        states = checkpoint.pop("optimizer_states")
        first = self.global_rank == 0
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=True)
        set_model_state_dict(self.model, weights if first else {}, options=options)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            set_optimizer_state_dict(self.model, optimizer, state if first else {}, options=options)
        return checkpoint
