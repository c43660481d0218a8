"""Columns and sentences of a fine-tuning's records."""

from collections.abc import Mapping

from openwavlm.downstream.validation import columns
from openwavlm.training.records import Value
from openwavlm.training.sums import StepRecord

_NAMES = {
    "word_error": "word error rate",
    "character_error": "character error rate",
    "phone_error": "phone error rate",
    "class_error": "share of wrong classes",
}


class TaskFigures:
    """The records of a fine-tuning.

    Args:
        task: Name of the task.
        symbols: Output symbols or classes, by number.
    """

    def __init__(self, task: str, symbols: tuple[str, ...]) -> None:
        self._task, self._symbols = task, symbols
        self.validation = columns(task)

    def row(self, record: StepRecord) -> dict[str, Value]:
        """As of `Figures`."""
        sums = record.sums
        units = max(1.0, sums["units"])
        return {
            "step": record.step,
            "loss": sums["loss"] / units,
            **({"accuracy": sums["correct"] / units} if self._task == "sid" else {}),
            "grad_norm": record.grad_norm,
            "lr": record.lr,
            "rows" if self._task == "sid" else "symbols": int(sums["units"]),
            "mask_coverage": sums["mask_frames"] / max(1.0, sums["valid_frames"]),
            **({} if self._task == "sid" else {"rows": int(sums["rows"])}),
            "audio_s": sums["samples"] / 16_000,
            "padding_share": 1 - sums["samples"] / max(1.0, sums["padded_samples"]),
            "unreadable_rows": int(sums["unreadable"]),
            "void": int(not record.grad_norm < float("inf")),
        }

    def progress(self, row: Mapping[str, Value]) -> str:
        """As of `Figures`."""
        accuracy = f" | accuracy {row['accuracy']:.3f}" if "accuracy" in row else ""
        return f"loss {row['loss']:.3f}{accuracy}"

    def validated(self, figures: Mapping[str, float | int]) -> str:
        """As of `Figures`."""
        rates = ", ".join(f"{_NAMES[name]} {figures[name]:.3f}" for name in self.validation if name in _NAMES)
        top = self._symbols[int(figures["top_symbol"])]
        return (
            f"validation on {figures['rows']} rows: {rates}, loss {figures['loss']:.3f}, most predicted {top!r} "
            f"({100 * figures['top_share']:.0f} %)"
        )
