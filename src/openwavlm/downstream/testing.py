"""The test of a fine-tuning, measured once after its last update, with the checkpoint that validation chose."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwavlm.downstream.build import make_builder
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.downstream.data import OpenTask
from openwavlm.downstream.load import load_task_run
from openwavlm.downstream.scoring import errors_of
from openwavlm.downstream.split import TEST, speaker_names
from openwavlm.downstream.validation import Scored, TaskEvaluation
from openwavlm.evaluation.intervals import by_cluster, ratio_interval
from openwavlm.runtime.atomic import write_atomically
from openwavlm.training.control import Control

log = logging.getLogger(__name__)


def measure_test(directory: Path, config: FinetuneConfig, data: OpenTask, summary: dict[str, Any]) -> dict[str, Any]:
    """Measures the test part, unless it was measured, and adds it to `summary.json`; returns the summary.

    Writes `test.tsv`: key, speaker, reference, prediction, edits and length of each row. The interval is over speakers (recordings, where
    they are unknown).
    """
    known = summary.get("test")
    if known is not None and known["updates"] == summary["updates"]:
        return summary
    chosen = "best" if (directory / "validation.csv").is_file() and _validated(directory) else "newest"
    loaded = load_task_run(directory, chosen)
    device = torch.device("cuda" if torch.cuda.is_available() and config.trainer.accelerator != "cpu" else "cpu")
    model = loaded.model.to(device).eval()
    evaluation = TaskEvaluation(
        data,
        data.specs(TEST),
        make_builder(config, data, model, training=False),
        config.loader,
        Control(alone=True),
        ctc=config.task.of_sequences,
    )
    rows: list[Scored] = []
    figures = evaluation.run(model, device, rows.append)
    names = {name: speaker_names(index) for name, index in data.indexes.items()}
    clusters = [names[row.source][row.row] or row.source for row in rows]
    errors = [errors_of(config.task.name, row.reference, row.prediction) for row in rows]
    edits = by_cluster(np.array([[one.edits for one in errors]]), clusters)
    lengths = by_cluster(np.array([one.length for one in errors]), clusters)
    found = ratio_interval(edits, lengths)
    lines = ["key\tspeaker\treference\tprediction\tedits\tlength"]
    for row, cluster, one in sorted(zip(rows, clusters, errors, strict=True), key=lambda each: (each[0].source, each[0].row)):
        key = data.indexes[row.source].keys[row.row]
        lines.append(f"{key}\t{cluster}\t{row.reference}\t{row.prediction}\t{one.edits}\t{one.length}")
    write_atomically(directory / "test.tsv", ("\n".join(lines) + "\n").encode())
    interval = None if np.isnan(found.low) else [round(found.low, 5), round(found.high, 5)]
    test = {
        "updates": summary["updates"],
        "checkpoint": loaded.step,
        "chosen": chosen,
        **{name: value for name, value in figures.items() if name != "top_symbol"},
        "interval": interval,
        "speakers": found.clusters,
    }
    summary = {**summary, "test": test}
    write_atomically(directory / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    ends = (
        f" ({interval[0]:.3f} to {interval[1]:.3f} over {found.clusters} speakers)"
        if interval
        else f" ({found.clusters} speaker)"
    )
    log.info(
        "test on %d rows: %s %.3f%s; test.tsv has every row",
        len(rows),
        evaluation.compared_by,
        figures[evaluation.compared_by],
        ends,
    )
    return summary


def _validated(directory: Path) -> bool:
    return len((directory / "validation.csv").read_text().splitlines()) > 1
