"""The objective of pre-training: masked prediction of pseudo-labels on mixed audio (HuBERT §II-B, WavLM §III-B).

Loss of a micro-batch: Σ cross-entropy + λ · penalty · n, with its n masked frames.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from openwavlm.audio.spectra import NUM_BANDS
from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.settings import Mixing
from openwavlm.training.config import RunConfig
from openwavlm.training.forward import (
    forward_micro_batch,
    logmel_error,
    micro_batch_loss,
    over_sets,
    prepare_waveforms,
    seed_dropout,
)
from openwavlm.training.objective import Outcome
from openwavlm.training.settings import Loss
from openwavlm.training.sums import micro_batch_sums, step_sums


class MaskedPrediction:
    """The objective of pre-training.

    Args:
        loss: Loss weights.
        mixing: Settings by which drawn mixtures are applied.
        seed: Of dropout.
        updates: Updates of the whole run, over which the warm-up losses fall.
        target_weights: Weight of each label set in the loss.
        unmasked_every: Steps between two measurements of the accuracy on unmasked frames; 0 = never.
        logmel_map: Linear map of the log-mel loss; None without that loss.
    """

    unit = "masked frames"

    def __init__(
        self,
        loss: Loss,
        mixing: Mixing,
        *,
        seed: int,
        updates: int,
        target_weights: Sequence[float] = (1.0,),
        unmasked_every: int = 50,
        logmel_map: nn.Linear | None = None,
    ) -> None:
        self.loss, self.mixing, self.seed, self.updates = loss, mixing, seed, updates
        self.target_weights, self.unmasked_every, self.logmel_map = target_weights, unmasked_every, logmel_map
        self.layout = step_sums(len(target_weights))

    @classmethod
    def of(cls, config: RunConfig, sets: int) -> "MaskedPrediction":
        """The objective of a config with so many label sets; call it after the model is made, since it may draw weights."""
        return cls(
            config.loss,
            config.mixing,
            seed=config.seed,
            updates=config.optim.updates,
            target_weights=config.loss.target_weights(sets),
            unmasked_every=config.callbacks.unmasked_every,
            logmel_map=nn.Linear(config.model.conv_dims[-1], NUM_BANDS) if config.loss.logmel else None,
        )

    def units(self, micro: PretrainBatch) -> int:
        """Masked frames."""
        return micro.num_masked

    def with_unmasked(self, step: int) -> bool:
        """As of `Objective`."""
        return bool(self.unmasked_every) and (step + 1) % self.unmasked_every == 0

    def outcome(self, model: Any, micro: PretrainBatch, step: int, *, measured: bool) -> Outcome:
        """As of `Objective`."""
        warm = self.loss.warm(step, self.updates)
        learn_unmasked = self.loss.unmasked * warm > 0
        device = micro.waveforms.device
        seed_dropout(device, self.seed, micro)
        waveforms = prepare_waveforms(micro, self.mixing, normalised=model.wavlm.config.normalise_waveform)
        output = forward_micro_batch(
            model,
            micro,
            waveforms,
            with_unmasked=self.with_unmasked(step) or learn_unmasked,
            learn_unmasked=learn_unmasked,
            with_marginal=measured,
        )
        logmel = None
        if self.logmel_map is not None:
            logmel = logmel_error(self.logmel_map, output.features, waveforms, micro.num_samples)
        loss = micro_batch_loss(
            output, logmel, self.loss, target_weights=self.target_weights, num_masked=micro.num_masked, warm=warm
        )
        main = over_sets(output, "cross_entropy_sum", self.target_weights).detach()
        sums = micro_batch_sums(self.layout, output, logmel, micro, device) if micro.weight else None
        return Outcome(loss, main, sums, output.marginal, output.features)
