"""The end of a fine-tuning that predicts one symbol in nearly every frame."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from openwavlm.downstream.build import symbols_of
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.downstream.data import OpenTask
from openwavlm.downstream.validation import TaskEvaluation
from openwavlm.runs.beginning import Beginning, Launch
from openwavlm.runtime.collectives import on_rank_zero
from openwavlm.training.records import read_record

COLLAPSED_SHARE = 0.99
COLLAPSED_CHECKS = 3


def check_collapse(shares: Sequence[float], symbol: str) -> None:
    """Refuses to go on after `COLLAPSED_CHECKS` validations in a row in which one symbol was predicted in nearly every frame.

    Args:
        shares: Share of the commonest prediction at each validation so far, the last one at the end.
        symbol: The commonest prediction.

    Raises:
        ValueError: If predictions have collapsed.
    """
    last = shares[-COLLAPSED_CHECKS:]
    if len(last) == COLLAPSED_CHECKS and min(last) > COLLAPSED_SHARE:
        raise ValueError(
            f"predictions have collapsed: {symbol} is {100 * last[-1]:.1f} % of them at {COLLAPSED_CHECKS} validations in a row: lower "
            "optim.lr, raise trained.freeze_updates or optim.warmup_updates, train longer before callbacks.validate_every, or check the "
            "targets"
        )


class WatchedEvaluation:
    """Validation that ends the run when predictions have collapsed."""

    def __init__(self, launch: Launch[FinetuneConfig], beginning: Beginning[OpenTask], evaluation: TaskEvaluation) -> None:
        self._evaluation, self._directory = evaluation, launch.directory
        self.compared_by = evaluation.compared_by
        self._symbols = symbols_of(beginning.data)
        optim, trained = launch.config.optim, launch.config.trained
        self._from = max(optim.warmup_updates, trained.freeze_updates, optim.updates // 5)
        self._every, self._at = launch.config.callbacks.validate_every, beginning.step
        self._shares = on_rank_zero(partial(_top_shares, launch.directory, self._from, beginning.step))

    def run(self, model: Any, device: torch.device) -> dict[str, float | int]:
        """As of `HeldOut`.

        Raises:
            ValueError: If predictions have collapsed.
        """
        figures = self._evaluation.run(model, device)
        self._at += self._every - self._at % max(1, self._every)
        if self._at >= self._from:
            self._shares.append(float(figures["top_share"]))
        check_collapse(self._shares, repr(self._symbols[int(figures["top_symbol"])]))
        return figures


def _top_shares(directory: Path, first: int, last: int) -> list[float]:
    """Share of the commonest prediction at the validations of earlier launches, from update `first` to `last`."""
    path = directory / "validation.csv"
    if not path.is_file():
        return []
    record = read_record(path, last_step=last)
    place = record.columns.index("top_share")
    return [float(row[place]) for row in record.rows if int(row[0]) >= first]
