"""Masked prediction on held-out speakers beside two baselines without audio: the unigram and the nearest unmasked label."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from openwavlm.batches.batch import PretrainBatch
from openwavlm.batches.collate import MicroBatchBuilder
from openwavlm.batches.loader import micro_batch_loader, received
from openwavlm.batches.plan import MicroBatchSpec
from openwavlm.batches.settings import Loading
from openwavlm.labels.quality import repeat_nearest
from openwavlm.model.pretraining import PretrainingOutput, WavLMForPretraining
from openwavlm.training.control import Control
from openwavlm.training.forward import forward_micro_batch, prepare_waveforms
from openwavlm.training.sums import NamedSums, of_further_sets, of_set

_OF_SETS = ("cross_entropy", "correct", "unigram_cross_entropy")
_SUMS = (*_OF_SETS, "unigram_correct", "nearest_correct", "masked", "unmasked_correct", "unmasked")


def unigram_log_prob(counts: np.ndarray) -> np.ndarray:
    """Add-one-smoothed log-probabilities, float64 (classes,), from label counts (classes,)."""
    smoothed = counts.astype(np.float64) + 1
    return np.log(smoothed / smoothed.sum())


def validation_figures(total: Mapping[str, float], sets: int) -> dict[str, float | int]:
    """Figures of a pass from its sums over micro-batches and ranks; without `step`, the columns of `validation.csv`.

    A figure without a number at its end is of the first label set.
    """
    frames = max(1.0, total["masked"])
    return {
        "cross_entropy": total["cross_entropy"] / frames,
        "accuracy": total["correct"] / frames,
        "unigram_cross_entropy": total["unigram_cross_entropy"] / frames,
        "unigram_accuracy": total["unigram_correct"] / frames,
        "repeat_nearest_accuracy": total["nearest_correct"] / frames,
        "masked_frames": int(total["masked"]),
        "unmasked_accuracy": total["unmasked_correct"] / max(1.0, total["unmasked"]),
        **{
            of_set(name, number): total[of_set(summed, number)] / frames
            for number in range(1, sets)
            for name, summed in zip(("cross_entropy", "accuracy", "unigram_cross_entropy"), _OF_SETS, strict=True)
        },
    }


class HeldOut(Protocol):
    """A fixed pass over a run's held-out set, the same on every rank.

    Attributes:
        compared_by: The figure by which checkpoints are compared; the lowest is the best.
    """

    compared_by: str

    def run(self, model: Any, device: torch.device) -> dict[str, float | int]:
        """Evaluates in eval mode, without draws from the training generators."""
        ...


class Evaluation:
    """A fixed pass over the held-out speakers: clean audio, masks fixed by key, equal figures at every number of processes.

    Args:
        specs: All micro-batches of the validation plan.
        builder: Makes them, without mixing.
        label_counts: int64 (classes,) of each label set: label counts of the training rows.
    """

    compared_by = "cross_entropy"

    def __init__(
        self,
        specs: list[MicroBatchSpec],
        builder: MicroBatchBuilder,
        loading: Loading,
        label_counts: list[np.ndarray],
        control: Control,
    ) -> None:
        self._specs, self._builder, self._loading, self._control = specs, builder, loading, control
        self._log_probs = [unigram_log_prob(counts) for counts in label_counts]
        self._commonest = int(label_counts[0].argmax())
        self._layout = NamedSums([*_SUMS, *of_further_sets(_OF_SETS, len(label_counts))])

    @torch.no_grad()
    def run(
        self,
        model: WavLMForPretraining,
        device: torch.device,
        each: Callable[[PretrainBatch, PretrainingOutput], None] | None = None,
    ) -> dict[str, float | int]:
        """Evaluates in eval mode, without draws from the training generators.

        `each` is called with every micro-batch and the model's output, which then has the cross-entropy of each frame.
        """
        was_training = model.training
        model.eval()
        sums = self._layout.zeros()
        for batch in received(iter(micro_batch_loader(self._builder, self._mine(), self._loading))):
            self._control.note(f"validation: micro-batch {batch.id.index} of {batch.id.source}")
            moved = batch.to(device)
            waveforms = prepare_waveforms(moved, None, normalised=model.wavlm.config.normalise_waveform)
            output = forward_micro_batch(model, moved, waveforms, with_unmasked=True, with_frames=each is not None)
            if batch.weight:
                sums += self._sums(batch, output)
                if each is not None:
                    each(batch, output)
        model.train(was_training)
        return validation_figures(self._layout.named(self._control.sum(sums)), len(self._log_probs))

    def _mine(self) -> list[MicroBatchSpec]:
        """This rank's part, filled up to equal numbers, since with sharded parameters every forward is a collective."""
        rank, world_size = self._control.rank, self._control.world_size
        fill = [replace(self._specs[0], weight=0.0)] * (-len(self._specs) % world_size)
        return [*self._specs, *fill][rank::world_size]

    def _sums(self, batch: PretrainBatch, output: PretrainingOutput) -> Tensor:
        hidden = batch.masked_index.numpy()
        figures: dict[str, float] = {"masked": float(len(hidden)), "unmasked": float(len(batch.unmasked_index))}
        truths = [labels.numpy().reshape(-1)[hidden] for labels in batch.labels]
        for number, (found, log_prob, truth) in enumerate(zip(output.sets, self._log_probs, truths, strict=True)):
            figures[of_set("cross_entropy", number)] = float(found.cross_entropy_sum)
            figures[of_set("correct", number)] = float(found.num_correct)
            figures[of_set("unigram_cross_entropy", number)] = float(-log_prob[truth].sum())
        nearest = repeat_nearest(batch.labels[0], batch.mask).numpy().reshape(-1)[hidden]
        figures["unigram_correct"] = float((truths[0] == self._commonest).sum())
        figures["nearest_correct"] = float((nearest == truths[0]).sum())
        if (seen := output.sets[0].num_unmasked_correct) is not None:
            figures["unmasked_correct"] = float(seen)
        return self._layout.vector(figures)
