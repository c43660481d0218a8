"""The test of a fine-tuning, measured once after its last update, with the checkpoint that validation chose."""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from openwavlm.downstream.build import make_builder
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.downstream.data import OpenTask
from openwavlm.downstream.decoding import BeamDecoder
from openwavlm.downstream.load import load_task_run
from openwavlm.downstream.scoring import Errors, character_errors, errors_of, mean_rate
from openwavlm.downstream.settings import Task
from openwavlm.downstream.split import TEST, speaker_names
from openwavlm.downstream.validation import Scored, TaskEvaluation
from openwavlm.evaluation.intervals import by_cluster, ratio_interval
from openwavlm.runtime.atomic import digest_of, write_atomically
from openwavlm.training.control import Control

log = logging.getLogger(__name__)


def measure_test(directory: Path, config: FinetuneConfig, data: OpenTask, summary: dict[str, Any]) -> dict[str, Any]:
    """Measures the test part, unless it was measured, and adds it to `summary.json`; returns the summary.

    Writes `test.tsv`: key, speaker, reference, prediction, edits and length of each row, and with task.decoder=beam its text and edits by
    the beam search. The intervals are over speakers (recordings, where they are unknown).

    Raises:
        ValueError: If the beam search's files are missing or damaged.
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
        decoder=BeamDecoder(config.task, data.vocabulary) if config.task.decoder == "beam" and data.vocabulary else None,
    )
    rows: list[Scored] = []
    figures = evaluation.run(model, device, rows.append)
    rows.sort(key=lambda row: (row.source, row.row))
    names = {name: speaker_names(index) for name, index in data.indexes.items()}
    clusters = [names[row.source][row.row] or row.source for row in rows]
    errors = [errors_of(config.task.name, row.reference, row.prediction) for row in rows]
    interval, speakers = _interval(errors, clusters)
    test = {
        "updates": summary["updates"],
        "checkpoint": loaded.step,
        "chosen": chosen,
        **{name: value for name, value in figures.items() if name != "top_symbol"},
        "interval": interval,
        "speakers": speakers,
    }
    table = {
        "key": [data.indexes[row.source].keys[row.row] for row in rows],
        "speaker": clusters,
        "reference": [row.reference for row in rows],
        "prediction": [row.prediction for row in rows],
        "edits": [one.edits for one in errors],
        "length": [one.length for one in errors],
    }
    rate = evaluation.compared_by
    log.info("test on %d rows: %s; test.tsv has every row", len(rows), _stated(rate, figures[rate], interval, speakers))
    if config.task.decoder == "beam":
        test["beam"], columns = _beam(config.task, rows, clusters, rate)
        table |= columns
        log.info("by beam search: %s", _stated(rate, test["beam"][rate], test["beam"]["interval"], speakers))
    lines = ["\t".join(table), *("\t".join(map(str, row)) for row in zip(*table.values(), strict=True))]
    write_atomically(directory / "test.tsv", ("\n".join(lines) + "\n").encode())
    summary = {**summary, "test": test}
    write_atomically(directory / "summary.json", (json.dumps(summary, indent=1) + "\n").encode())
    return summary


def _beam(task: Task, rows: Sequence[Scored], clusters: list[str], rate: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Figures of the beam search with its settings, for `summary.json`, and its columns of `test.tsv`."""
    texts = [row.decoded or "" for row in rows]
    errors = [errors_of(task.name, row.reference, text) for row, text in zip(rows, texts, strict=True)]
    rates = {rate: mean_rate(errors)}
    if task.name == "ctc":
        rates["character_error"] = mean_rate(
            [character_errors(row.reference, text) for row, text in zip(rows, texts, strict=True)]
        )
    given = {key: Path(path) for key in ("lexicon", "language_model") if (path := getattr(task, key))}
    files = {
        key: {"path": str(path), "hash": digest_of(path, lambda: hashlib.blake2b(digest_size=16))} for key, path in given.items()
    }
    settings = {key: getattr(task, key) for key in ("lm_weight", "word_score", "beam")}
    figures = {**rates, "interval": _interval(errors, clusters)[0], **files, **settings}
    return figures, {"beam_prediction": texts, "beam_edits": [one.edits for one in errors]}


def _interval(errors: Sequence[Errors], clusters: list[str]) -> tuple[list[float] | None, int]:
    """95 % interval of the rate over clusters, None of one alone, and the number of clusters."""
    edits = by_cluster(np.array([[one.edits for one in errors]]), clusters)
    found = ratio_interval(edits, by_cluster(np.array([one.length for one in errors]), clusters))
    return None if np.isnan(found.low) else [round(found.low, 5), round(found.high, 5)], found.clusters


def _stated(name: str, rate: float, interval: list[float] | None, speakers: int) -> str:
    ends = f"{interval[0]:.3f} to {interval[1]:.3f} over {speakers} speakers" if interval else f"{speakers} speaker"
    return f"{name} {rate:.3f} ({ends})"


def _validated(directory: Path) -> bool:
    return len((directory / "validation.csv").read_text().splitlines()) > 1
