"""A checkpoint's tensors for a launch with another precision or running mean than the one before."""

from collections.abc import Mapping

from torch import Tensor, nn

_MODEL, _MEAN, _SCALE = "model.", "ema.", "loss_scale."


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
