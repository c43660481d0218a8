"""200 updates in bfloat16 and in float32 from the same seed and on the same batches, without dropout: the two curves of the loss."""

import csv
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from gpu_parts.child import Reporter
from gpu_parts.setting import Setting
from gpu_parts.watch import StopAt, forget, train

_NO_DROPOUT = ("model.dropout=0", "model.attention_dropout=0", "model.input_dropout=0", "model.layer_drop=0")


def losses(directory: Path) -> list[float]:
    """Cross-entropy of each update of a run."""
    return [float(row["cross_entropy"]) for row in csv.DictReader((directory / "metrics.csv").read_text().splitlines())]


def compare(low: list[float], full: list[float]) -> dict[str, Any]:
    """Differences of two curves over the updates that both have.

    Returns:
        Largest and last difference, relative to the loss in float32; the mean difference over the last tenth with its sign; and as
        a yardstick the mean change of the float32 loss from one update to the next.
    """
    pairs = list(zip(low, full, strict=False))
    gaps = [(a - b) / b for a, b in pairs]
    last = gaps[-max(1, len(gaps) // 10) :]
    changes = [abs(b - a) / a for a, b in pairwise(full[: len(pairs)])]
    return {
        "updates_compared": len(pairs),
        "largest_gap": max(map(abs, gaps)),
        "update_of_largest_gap": 1 + max(range(len(gaps)), key=lambda n: abs(gaps[n])),
        "final_gap": gaps[-1],
        "mean_gap_of_last_tenth": sum(last) / len(last),
        "mean_change_between_updates_fp32": sum(changes) / len(changes) if changes else None,
    }


def measure(setting: Setting, report: Reporter) -> None:
    """Reports both curves and their differences."""
    updates = 200 if setting.full else 12
    experiment, size = ("wavlm_base", ("batch.seconds=175",)) if setting.full else ("wavlm_base", ())
    schedule = (f"optim.updates={updates}", f"optim.warmup_updates={updates // 10}", "optim.lr=5e-4")
    report(experiment=experiment, overrides=[*size, *schedule, *_NO_DROPOUT])
    curves: dict[str, list[float]] = {}
    for name, precision, share in (("bf16", "bf16-mixed", 0.4), ("fp32", "32-true", 0.9)):
        directory = setting.folder / f"run-precision-{name}"
        command = setting.training(experiment, *size, *schedule, *_NO_DROPOUT, f"precision={precision}")
        train(command, directory, StopAt(time.monotonic() + share * setting.left_s()))
        curves[name] = losses(directory)
        forget(directory)
        report(**{f"cross_entropy_{name}": [round(value, 5) for value in curves[name]]})
    report(**compare(curves["bf16"], curves["fp32"]))
