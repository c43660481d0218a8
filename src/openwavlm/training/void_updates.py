"""Updates whose gradient is not finite: skipped on the device, counted and named here one step later, an error when there are many."""

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from openwavlm.batches.batch import MicroBatchId

_TOLERATED = 20  # below this many, a rate says nothing: in float16 the scale is still being looked for
log = logging.getLogger(__name__)


@dataclass
class Suspects:
    """A rank's micro-batches of one step and their losses, which stay on the device unless the update was void."""

    ids: list[MicroBatchId]
    losses: list[Tensor]

    def add(self, identity: MicroBatchId, loss: Tensor) -> None:
        """Takes one micro-batch."""
        self.ids.append(identity)
        self.losses.append(loss.detach())

    def guilty(self) -> list[MicroBatchId]:
        """Those whose own loss is not finite."""
        finite = torch.isfinite(torch.stack(self.losses)).tolist()
        return [identity for identity, sound in zip(self.ids, finite, strict=True) if not sound]


class VoidUpdates:
    """Counts them; every rank sees the same norms, so all raise at the same step.

    Args:
        max_rate: Share of the run's updates so far that may be void; the first 20 always may, except with 0.
    """

    def __init__(self, max_rate: float) -> None:
        self.count, self._max_rate = 0, max_rate

    def note(self, step: int, norm: float, suspects: Suspects) -> None:
        """Takes the gradient norm of an update.

        Raises:
            ValueError: If too many updates have been void.
        """
        if math.isfinite(norm):
            return
        self.count += 1
        named = ", ".join(f"{i.source} epoch {i.epoch} stream {i.stream} micro-batch {i.index}" for i in suspects.guilty())
        where = f"the loss is not finite in {named}" if named else "all losses on this rank are finite, so a gradient overflowed"
        log.warning("update %d was void (gradient norm %s): %s", step, norm, where)
        if self.count > max(_TOLERATED if self._max_rate else 0, self._max_rate * step):
            raise ValueError(
                f"{self.count} of {step} updates were void, more than optim.max_skip_rate={self._max_rate:g} allows: look at the "
                "micro-batches that the log names (openwavlm replay), use precision=bf16-mixed, or lower optim.lr"
            )


def check_learned(updates: int, skipped: int) -> None:
    """Refuses a run that has changed no weight.

    Args:
        updates: Updates so far.
        skipped: Those whose gradient was not finite.

    Raises:
        ValueError: If all were skipped.
    """
    if 0 < updates <= skipped:
        raise ValueError(
            f"all {updates} updates were void (the gradient was not finite), so the model is as it began: start a new run under another "
            "name with precision=32-true or bf16-mixed, or a lower optim.lr"
        )
