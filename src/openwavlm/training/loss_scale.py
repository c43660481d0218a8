"""Dynamic scaling of the loss for float16, adjusted on the device without synchronisation.

The scale doubles after `growth_interval` sound updates and halves with every skipped one (Micikevicius et al. 2018, §3.2). It is a power of
two, so that scaling and unscaling change no digit, and part of the checkpoint, so that a resumed run goes on with it.
"""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

INITIAL = 2.0**7  # fairseq's
GROWTH_INTERVAL = 2_000


class LossScale(nn.Module):
    """The factor that the loss is multiplied by.

    Attributes:
        scale: float32 ().
        growth: int32 (), sound updates since it changed.
    """

    scale: Tensor
    growth: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(INITIAL))
        self.register_buffer("growth", torch.tensor(0, dtype=torch.int32))

    @torch.no_grad()
    def unscale(self, gradients: list[Tensor]) -> None:
        """Divides gradients, sharded or whole, in place."""
        whole = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
        torch._foreach_mul_(whole, 1 / self.scale)

    @torch.no_grad()
    def update(self, skipped: Tensor) -> None:
        """Adjusts the scale after an update; `skipped` is float32 (), 1 or 0, on the device."""
        torch._amp_update_scale_(self.scale, self.growth, skipped, 2.0, 0.5, GROWTH_INTERVAL)
