"""Columns and sentences of a pre-training's records."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from openwavlm.training.records import Value
from openwavlm.training.sums import StepRecord, of_set
from openwavlm.training.validation import validation_figures


def metrics_row(record: StepRecord, penalty_weight: float, target_weights: Sequence[float] = (1.0,)) -> dict[str, Value]:
    """A row of `metrics.csv`: figures of one update, independent of time and machine.

    A column without a number at its end is of the first label set, except the loss, which is of all.
    """
    sums = record.sums
    masked = max(1.0, sums["masked"])
    losses = [sums[of_set("cross_entropy", number)] / masked for number in range(len(target_weights))]
    hits = [sums[of_set("correct", number)] / masked for number in range(len(target_weights))]
    predicted, penalty = target_weights[0] * losses[0], sums["penalty"] / masked
    for weight, loss in zip(target_weights[1:], losses[1:], strict=True):
        predicted += weight * loss
    return {
        "step": record.step,
        "loss": predicted + penalty_weight * penalty,
        "cross_entropy": losses[0],
        "accuracy": hits[0],
        "unmasked_accuracy": sums["unmasked_correct"] / sums["unmasked"] if record.with_unmasked and sums["unmasked"] else None,
        "feature_penalty": penalty,
        "logmel_error": sums["logmel_error"] / masked if sums["logmel_error"] else None,
        "grad_norm": record.grad_norm,
        "lr": record.lr,
        "masked_frames": int(sums["masked"]),
        "mask_coverage": sums["mask_frames"] / max(1.0, sums["valid_frames"]),
        "mixed_rows": int(sums["mixtures"]),
        "rows": int(sums["rows"]),
        "audio_s": sums["samples"] / 16_000,
        "padding_share": 1 - sums["samples"] / max(1.0, sums["padded_samples"]),
        "unreadable_rows": int(sums["unreadable"]),
        "void": int(not record.grad_norm < float("inf")),
        **{
            of_set(name, number): values[number]
            for number in range(1, len(losses))
            for name, values in (("cross_entropy", losses), ("accuracy", hits))
        },
    }


class MaskedFigures:
    """The records of masked prediction.

    Args:
        penalty_weight: Weight of the feature penalty in the logged loss.
        target_weights: Weights of the label sets.
    """

    def __init__(self, penalty_weight: float, target_weights: Sequence[float] = (1.0,)) -> None:
        self._penalty_weight, self._target_weights = penalty_weight, target_weights
        self.validation = list(validation_figures(defaultdict[str, float](float), len(target_weights)))

    def row(self, record: StepRecord) -> dict[str, Value]:
        """As of `Figures`."""
        return metrics_row(record, self._penalty_weight, self._target_weights)

    def progress(self, row: Mapping[str, Value]) -> str:
        """As of `Figures`."""
        return f"loss {row['loss']:.3f} | masked accuracy {row['accuracy']:.3f}"

    def validated(self, figures: Mapping[str, float | int]) -> str:
        """As of `Figures`."""
        return (
            f"held-out speakers: cross-entropy {figures['cross_entropy']:.3f} (unigram "
            f"{figures['unigram_cross_entropy']:.3f}), masked accuracy {figures['accuracy']:.3f} (commonest label "
            f"{figures['unigram_accuracy']:.3f}, nearest unmasked label {figures['repeat_nearest_accuracy']:.3f})"
        )
