"""Masked prediction on held-out speakers beside what needs no audio: the unigram and the nearest unmasked label."""

from dataclasses import dataclass, replace

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

VALIDATION_COLUMNS = [
    "step",
    "cross_entropy",
    "accuracy",
    "unigram_cross_entropy",
    "unigram_accuracy",
    "repeat_nearest_accuracy",
    "masked_frames",
    "unmasked_accuracy",
]


@dataclass(frozen=True)
class Unigram:
    """What is known of the labels without audio, from the training rows.

    Attributes:
        log_prob: float64 (classes,), add-one-smoothed log-probabilities.
        commonest: The label that is always guessed.
    """

    log_prob: np.ndarray
    commonest: int

    @classmethod
    def of(cls, counts: np.ndarray) -> "Unigram":
        """From training counts (classes,)."""
        smoothed = counts.astype(np.float64) + 1
        return cls(np.log(smoothed / smoothed.sum()), int(counts.argmax()))


class Evaluation:
    """A fixed pass over the held-out speakers: clean audio, masks fixed by key, the same figure at every number of processes.

    Args:
        specs: All micro-batches of the validation plan.
        builder: Makes them, without mixing.
        loading: Workers.
        unigrams: The training labels' distribution, one a label set.
        control: Sums over ranks.
    """

    def __init__(
        self, specs: list[MicroBatchSpec], builder: MicroBatchBuilder, loading: Loading, unigrams: list[Unigram], control: Control
    ) -> None:
        self._specs, self._builder, self._loading = specs, builder, loading
        self._unigram, self._others, self._control = unigrams[0], unigrams[1:], control

    @torch.no_grad()
    def run(self, model: WavLMForPretraining, device: torch.device) -> dict[str, float | int]:
        """Evaluates in eval mode; touches no training generator."""
        was_training = model.training
        model.eval()
        sums = torch.zeros(8 + 3 * len(self._others), dtype=torch.float64)
        for batch in received(iter(micro_batch_loader(self._builder, self._mine(), self._loading))):
            self._control.note(f"validation: micro-batch {batch.id.index} of {batch.id.source}")
            moved = batch.to(device)
            waveforms = prepare_waveforms(moved, None, normalised=model.wavlm.config.normalise_waveform)
            output = forward_micro_batch(model, moved, waveforms, with_unmasked=True)
            if batch.weight:
                sums += self._sums(batch, output)
        model.train(was_training)
        first, *others = torch.split(self._control.sum(sums), [8] + [3] * len(self._others))
        loss, correct, unigram_loss, unigram_correct, nearest, masked, seen_correct, seen = first.tolist()
        frames = max(1.0, masked)
        names = ("cross_entropy", "accuracy", "unigram_cross_entropy")
        return {
            "cross_entropy": loss / frames,
            "accuracy": correct / frames,
            "unigram_cross_entropy": unigram_loss / frames,
            "unigram_accuracy": unigram_correct / frames,
            "repeat_nearest_accuracy": nearest / frames,
            "masked_frames": int(masked),
            "unmasked_accuracy": seen_correct / max(1.0, seen),
            **{
                f"{name}_{number}": value / frames
                for number, of_set in enumerate(others, start=2)
                for name, value in zip(names, of_set.tolist(), strict=True)
            },
        }

    def _mine(self) -> list[MicroBatchSpec]:
        """This rank's part, filled to equal numbers: with sharded parameters every forward is a collective."""
        rank, world_size = self._control.rank, self._control.world_size
        fill = [replace(self._specs[0], weight=0.0)] * (-len(self._specs) % world_size)
        return [*self._specs, *fill][rank::world_size]

    def _sums(self, batch: PretrainBatch, output: PretrainingOutput) -> Tensor:
        labels = batch.labels.numpy()
        hidden = batch.masked_index.numpy()
        truth = labels.reshape(-1)[hidden]
        unmasked_correct = output.num_unmasked_correct
        others = []
        for number, (of_set, unigram) in enumerate(zip(output.others, self._others, strict=True)):
            assert batch.other_labels is not None
            expected = batch.other_labels[number].numpy().reshape(-1)[hidden]
            guessed = float(-unigram.log_prob[expected].sum())
            others += [float(of_set.cross_entropy_sum), float(of_set.num_correct), guessed]
        nearest = repeat_nearest(batch.labels, batch.mask).numpy().reshape(-1)[hidden]
        return torch.tensor(
            [
                float(output.cross_entropy_sum),
                float(output.num_correct),
                float(-self._unigram.log_prob[truth].sum()),
                float((truth == self._unigram.commonest).sum()),
                float((nearest == truth).sum()),
                float(len(truth)),
                float(unmasked_correct) if unmasked_correct is not None else 0.0,
                float(len(batch.unmasked_index)),
                *others,
            ],
            dtype=torch.float64,
        )
