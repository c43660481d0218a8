"""What a training minimises, as the training module sees it: pre-training's masked prediction, or a task of fine-tuning."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from openwavlm.training.sums import NamedSums


class Outcome(NamedTuple):
    """One micro-batch after its forward pass."""

    loss: Tensor  # (), summed over the micro-batch's units, with a gradient
    main: Tensor  # (), the same without penalties and gradient; names a micro-batch that is not finite
    sums: Tensor | None  # float64 (entries of the layout,), on the model's device; None for a padding micro-batch
    marginal: Tensor | None  # float32 (classes,), predicted probabilities, summed; None unless measured
    features: Tensor  # (batch, channels, frames), the extractor's output


class Objective(Protocol):
    """The loss of a training, by micro-batch.

    Attributes:
        layout: Names of the figures that are summed over micro-batches and ranks.
        unit: Name of what the loss is normalised by, in the plural.
    """

    layout: NamedSums
    unit: str

    def units(self, micro: Any) -> int:
        """Units of a micro-batch, known on the host: the loss of a step is divided by those of all ranks."""
        ...

    def with_unmasked(self, step: int) -> bool:
        """Whether update `step`, from 0, measures the accuracy on unmasked frames."""
        ...

    def outcome(self, model: nn.Module, micro: Any, step: int, *, measured: bool) -> Outcome:
        """Forward pass of a micro-batch in update `step`, from 0; with `measured`, the predicted probabilities are summed."""
        ...
