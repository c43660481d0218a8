"""A pass over held-out rows: loss, error rates, and how far predictions have collapsed onto one symbol."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from openwavlm.batches.loader import micro_batch_loader, received
from openwavlm.batches.plan import MicroBatchSpec
from openwavlm.batches.settings import Loading
from openwavlm.downstream.batch import TaskBatch, TaskBuilder
from openwavlm.downstream.data import OpenTask
from openwavlm.downstream.model import TaskModel, TaskOutput
from openwavlm.downstream.objective import run_model, task_loss
from openwavlm.downstream.scoring import character_errors, errors_of
from openwavlm.training.control import Control
from openwavlm.training.sums import NamedSums

_SUMS = ("loss", "units", "edits", "length", "character_edits", "characters", "rows", "frames")


@dataclass(frozen=True)
class Scored:
    """One row with its prediction.

    Attributes:
        source, row: Place of the row.
        reference, prediction: Prepared target and predicted text, or classes.
        decoded: Text by the pass's second decoder; None without one.
    """

    source: str
    row: int
    reference: str
    prediction: str
    decoded: str | None = None


def columns(task: str) -> list[str]:
    """Figures of a pass, in order: the columns of `validation.csv` after `step`."""
    rates = {"ctc": ["word_error", "character_error"], "phones": ["phone_error"], "sid": ["class_error"]}[task]
    return [*rates, "loss", "top_share", "top_symbol", "rows"]


class TaskEvaluation:
    """A fixed pass over rows of a held-out part, each whole and un-masked; equal figures at every number of processes.

    Args:
        specs: Its micro-batches.
        ctc: Whether the targets are sequences.
        decoder: A second decoder of each row's logits (frames, symbols); the pass's own figures are greedy.
    """

    def __init__(
        self,
        opened: OpenTask,
        specs: Sequence[MicroBatchSpec],
        builder: TaskBuilder,
        loading: Loading,
        control: Control,
        *,
        ctc: bool,
        decoder: Callable[[Tensor], str] | None = None,
    ) -> None:
        self._decoder = decoder
        self._opened, self._specs, self._builder, self._loading, self._control = opened, list(specs), builder, loading, control
        self._ctc, self._task = ctc, opened.task.name
        self.compared_by = columns(self._task)[0]
        self._layout = NamedSums([*_SUMS, *(f"symbol {number}" for number in range(opened.num_outputs))])

    @torch.no_grad()
    def run(self, model: TaskModel, device: torch.device, each: Callable[[Scored], None] | None = None) -> dict[str, float | int]:
        """Evaluates in eval mode, without draws from the training generators; `each` is called with every row of this rank."""
        was_training = model.training
        model.eval()
        sums = self._layout.zeros()
        for batch in received(iter(micro_batch_loader(self._builder, self._mine(), self._loading))):
            self._control.note(f"validation: micro-batch {batch.id.index} of {batch.id.source}")
            moved = batch.to(device)
            output = run_model(model, moved, training=False)
            if batch.weight:
                sums += self._sums(batch, output, task_loss(output, moved, ctc=self._ctc), each)
        model.train(was_training)
        return self._figures(self._layout.named(self._control.sum(sums)))

    def _mine(self) -> list[MicroBatchSpec]:
        """This rank's part, filled up to equal numbers, since with sharded parameters every forward is a collective."""
        rank, world_size = self._control.rank, self._control.world_size
        fill = [replace(self._specs[0], weight=0.0)] * (-len(self._specs) % world_size)
        return [*self._specs, *fill][rank::world_size]

    def _sums(self, batch: TaskBatch, output: TaskOutput, loss: Tensor, each: Callable[[Scored], None] | None) -> Tensor:
        best = output.logits.argmax(-1).cpu()
        figures = dict.fromkeys(_SUMS, 0.0)
        figures["loss"] = float(loss)
        targets = self._opened.targets[batch.id.source]
        histogram = torch.zeros(self._opened.num_outputs, dtype=torch.float64)
        for place, row in enumerate(batch.rows.tolist()):
            reference = targets[row]
            if not batch.num_samples[place] or reference is None:
                continue
            symbols = best[place, : int(output.frames[place])] if self._ctc else best[place].reshape(1)
            histogram += torch.bincount(symbols, minlength=len(histogram))
            prediction = self._text(symbols.tolist())
            errors = errors_of(self._task, reference, prediction)
            figures["edits"] += errors.edits
            figures["length"] += errors.length
            if self._task == "ctc":
                letters = character_errors(reference, prediction)
                figures["character_edits"] += letters.edits
                figures["characters"] += letters.length
            figures["rows"] += 1
            figures["frames"] += len(symbols)
            if each is not None:
                decoded = self._decoder(output.logits[place, : len(symbols)]) if self._decoder is not None else None
                each(Scored(batch.id.source, row, reference, prediction, decoded))
        figures["units"] = float(batch.num_tokens) if self._ctc else figures["rows"]
        vector = self._layout.vector(figures)
        vector[len(_SUMS) :] = histogram
        return vector

    def _text(self, symbols: list[int]) -> str:
        vocabulary = self._opened.vocabulary
        return vocabulary.greedy(symbols) if vocabulary is not None else self._opened.classes[symbols[0]]

    def _figures(self, total: dict[str, float]) -> dict[str, float | int]:
        counts = [total[f"symbol {number}"] for number in range(self._opened.num_outputs)]
        top = max(range(len(counts)), key=counts.__getitem__)
        rates: dict[str, float | int] = {self.compared_by: total["edits"] / max(1.0, total["length"])}
        if self._task == "ctc":
            rates["character_error"] = total["character_edits"] / max(1.0, total["characters"])
        return {
            **rates,
            "loss": total["loss"] / max(1.0, total["units"]),
            "top_share": counts[top] / max(1.0, total["frames"]),
            "top_symbol": top,
            "rows": int(total["rows"]),
        }
