"""The objectives of fine-tuning: CTC (Graves et al. 2006) over symbols, cross-entropy over classes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from openwavlm.downstream.batch import TaskBatch
from openwavlm.downstream.model import TaskModel, TaskOutput
from openwavlm.downstream.vocabulary import BLANK
from openwavlm.model.wavlm import normalise
from openwavlm.training.forward import seed_dropout
from openwavlm.training.objective import Outcome
from openwavlm.training.sums import NamedSums

SUMS = ("loss", "units", "correct", "rows", "unreadable", "samples", "padded_samples", "mask_frames", "valid_frames")


def run_model(model: TaskModel, micro: TaskBatch, *, training: bool, frozen: bool = False) -> TaskOutput:
    """Runs the model on one micro-batch on its device; masks and LayerDrop only in training."""
    waveforms = micro.waveforms.to(torch.float32) / 32768
    if model.wavlm.config.normalise_waveform:
        waveforms = normalise(waveforms, micro.num_samples)
    masks = {"mask": micro.mask, "channel_mask": micro.channel_mask, "layer_keep": micro.layer_keep} if training else {}
    return model(waveforms, micro.num_samples, **masks, frozen=frozen)


def task_loss(output: TaskOutput, micro: TaskBatch, *, ctc: bool) -> Tensor:
    """Negative log-likelihood of a micro-batch's targets, nats, summed over its readable rows.

    Under CTC a row with fewer frames than its symbols need has no loss; such training rows are left out beforehand.
    """
    readable = micro.target_lengths > 0
    if not ctc:
        truth = torch.where(readable, micro.targets[:, 0], -1)
        return F.cross_entropy(output.logits, truth, ignore_index=-1, reduction="sum")
    log_probs = output.logits.log_softmax(-1).transpose(0, 1)
    losses = F.ctc_loss(
        log_probs,
        micro.targets.clamp(min=1),
        torch.tensor(micro.frame_counts).clamp(min=1),
        torch.tensor(micro.token_counts),
        blank=BLANK,
        reduction="none",
        zero_infinity=True,
    )
    return torch.where(readable, losses, 0).sum()


class TaskObjective:
    """The loss of a fine-tuning, normalised by symbols (CTC) or rows (classes).

    Args:
        ctc: Whether the targets are sequences.
        seed: Of dropout.
        freeze_updates: Updates over which the encoder runs without gradients.
        joined: Whether several processes train together: then the encoder runs with gradients in these updates too, since DDP waits for
            those of every parameter; they are not used.
        masked: Whether span and channel masks are applied.
    """

    def __init__(self, *, ctc: bool, seed: int, freeze_updates: int = 0, joined: bool = False, masked: bool = True) -> None:
        self.ctc, self.seed, self.freeze_updates, self.joined, self.masked = ctc, seed, freeze_updates, joined, masked
        self.unit = "symbols" if ctc else "rows"
        self.layout = NamedSums(SUMS)

    def units(self, micro: TaskBatch) -> int:
        """Symbols or readable rows."""
        if not micro.weight:
            return 0
        return micro.num_tokens if self.ctc else len(micro.rows) - micro.num_unreadable

    def with_unmasked(self, step: int) -> bool:
        """There are no unmasked frames to measure."""
        return False

    def outcome(self, model: Any, micro: TaskBatch, step: int, *, measured: bool) -> Outcome:
        """As of `Objective`."""
        device = micro.waveforms.device
        seed_dropout(device, self.seed, micro)
        output = run_model(model, micro, training=self.masked, frozen=step < self.freeze_updates and not self.joined)
        loss = task_loss(output, micro, ctc=self.ctc)
        marginal = None
        if measured:
            probabilities = output.logits.detach().softmax(-1)
            if self.ctc:
                inside = torch.arange(probabilities.shape[1], device=device) < output.frames[:, None]
                probabilities = torch.where(
                    inside.unsqueeze(-1), probabilities, 0
                )  # a boolean index would need a synchronisation
            marginal = probabilities.reshape(-1, probabilities.shape[-1]).sum(0)
        sums = self._sums(output, loss, micro, device) if micro.weight else None
        return Outcome(loss, loss.detach(), sums, marginal, output.features)

    def _sums(self, output: TaskOutput, loss: Tensor, micro: TaskBatch, device: torch.device) -> Tensor:
        rows, samples = micro.waveforms.shape
        known = {
            "units": float(self.units(micro)),
            "rows": rows,
            "unreadable": micro.num_unreadable,
            "samples": micro.valid_samples,
            "padded_samples": rows * samples,
        }
        measured = {
            "loss": loss.detach(),
            "mask_frames": micro.mask.sum() if self.masked else torch.zeros((), device=device),
            "valid_frames": output.frames.clamp(min=0).sum(),
        }
        if not self.ctc:
            measured["correct"] = (output.logits.argmax(-1) == micro.targets[:, 0]).sum()
        return self.layout.vector(known, measured, device)
