"""Learning rates of a fine-tuning: a factor for the head and for each layer, and an encoder that is held for the first updates."""

from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import TYPE_CHECKING

from openwavlm.downstream.settings import Trained
from openwavlm.training.optim import Optim, is_matrix

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class TaskOptim(Optim):
    """The optimiser of a fine-tuning.

    Attributes:
        trained: What is trained, with the factors on the rate.
        layers: Layers of the encoder.
    """

    trained: Trained = field(default_factory=Trained)
    layers: int = 0

    @classmethod
    def of(cls, optim: Optim, trained: Trained, layers: int) -> "TaskOptim":
        """Adds the factors of `trained` to an optimiser's settings."""
        return cls(**{each.name: getattr(optim, each.name) for each in fields(Optim)}, trained=trained, layers=layers)

    def scale_of(self, name: str) -> float:
        """Factor on the learning rate of a parameter of the training module.

        The head's is `head_lr`; the top layer has 1, each layer below `layer_decay` times the next, and what lies before the first layer
        one factor more.
        """
        parts = name.split(".")
        if "wavlm" not in parts:
            return self.trained.head_lr
        inside = parts[parts.index("wavlm") + 1 :]
        depth = self.layers - 1 - int(inside[2]) if inside[:2] == ["encoder", "layers"] else self.layers
        return self.trained.layer_decay**depth

    def _keys(self, module: "nn.Module") -> "list[tuple[tuple[float, bool, bool], str, nn.Parameter]]":
        found = []
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                held = bool(self.trained.freeze_updates) and "wavlm" in name.split(".")
                decays = self.decay == "all" or is_matrix(parameter)
                found.append(((self.scale_of(name), not decays, held), name, parameter))
        return sorted(found, key=lambda one: one[0])

    def groups(self, module: "nn.Module") -> "list[dict[str, nn.Parameter]]":
        """The trained parameters by name, a group for each factor, with and without decay."""
        grouped = groupby(self._keys(module), key=lambda one: one[0])
        return [{name: parameter for _, name, parameter in members} for _, members in grouped]

    def optimizer(self, module: "nn.Module") -> "torch.optim.AdamW":
        """AdamW; each group has its factor as `scale`, and as `held` the updates over which it stays as it is."""
        import torch  # not at the top: settings are checked before torch is imported

        groups = []
        for (scale, undecayed, held), members in groupby(self._keys(module), key=lambda one: one[0]):
            groups.append(
                {
                    "params": [parameter for _, _, parameter in members],
                    "weight_decay": 0.0 if undecayed else self.weight_decay,
                    "scale": scale,
                    "held": self.trained.freeze_updates if held else 0,
                }
            )
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, eps=self.eps, fused=True)
