"""Updates without a finite gradient, and the loss scale that keeps them few in float16.

The device skips such an update; one step later it is counted here, and its micro-batches are named.
"""

import logging
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from openwavlm.batches.batch import MicroBatchId

_TOLERATED = 20  # fewer give no rate: in float16 the first updates search for the loss scale
INITIAL = 2.0**7  # fairseq's
GROWTH_INTERVAL = 2_000
log = logging.getLogger(__name__)


class SkippedUpdates:
    """Counts skipped updates; of the run's updates so far a share of `max_rate` may be skipped, and always 20 unless it is 0."""

    def __init__(self, max_rate: float) -> None:
        self.count, self._max_rate = 0, max_rate

    def check(self, step: int, norm: float, losses: Sequence[tuple[MicroBatchId, Tensor]]) -> None:
        """Counts update `step` if its gradient norm, the same on all ranks, is not finite; names the micro-batches by their `losses`.

        Raises:
            ValueError: If too many updates have been skipped.
        """
        if math.isfinite(norm):
            return
        self.count += 1
        finite = torch.isfinite(torch.stack([loss for _, loss in losses])).tolist()
        odd = [identity for (identity, _), sound in zip(losses, finite, strict=True) if not sound]
        named = ", ".join(f"{i.source} epoch {i.epoch} stream {i.stream} micro-batch {i.index}" for i in odd)
        where = f"the loss is not finite in {named}" if named else "all losses on this rank are finite, so a gradient overflowed"
        log.warning("update %d was skipped (gradient norm %s): %s", step, norm, where)
        if self.count > max(_TOLERATED if self._max_rate else 0, self._max_rate * step):
            raise ValueError(
                f"{self.count} of {step} updates were skipped, more than optim.max_skip_rate={self._max_rate:g} allows: look at the "
                "micro-batches that the log names (openwavlm replay), use precision=bf16-mixed, or lower optim.lr"
            )


def check_learned(updates: int, skipped: int) -> None:
    """Refuses a run that has changed no weight.

    Raises:
        ValueError: If all of the `updates` so far were skipped.
    """
    if 0 < updates <= skipped:
        raise ValueError(
            f"all {updates} updates were skipped (their gradients were not finite), so the weights are the initial ones: start a new run "
            "under another name with precision=32-true or bf16-mixed, or a lower optim.lr"
        )


class LossScale(nn.Module):
    """Dynamic scale of the loss for float16, adjusted on the device without synchronisation.

    It doubles after `GROWTH_INTERVAL` sound updates and halves with every skipped one (Micikevicius et al. 2018, §3.2). It is a power of
    two, so that scaling and unscaling change no digit, and part of the checkpoint.
    """

    scale: Tensor  # float32 ()
    growth: Tensor  # int32 (), sound updates since it changed

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
