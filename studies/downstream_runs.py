"""Fine-tunings of the study: each is one stage, trained in the worker process that calls it, with its test by speaker."""

import csv
import json
import logging
import shutil
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import openwavlm.cli.finetune  # noqa: F401 (registers the defaults of the classes)
from openwavlm.downstream.launch import finetune
from openwavlm.downstream.load import load_task_run
from openwavlm.downstream.scoring import character_errors
from openwavlm.pipeline.stages import Chain, Stage
from openwavlm.runs.compose import composed, plain

VERSION = 1


@dataclass(frozen=True)
class Training:
    """One fine-tuning.

    Attributes:
        chain: Folder of the study's stages.
        name: Stage below it.
        words: Overrides of `openwavlm finetune` that decide the result, without paths.
        paths: Overrides that name shard sets and encoder.
        inputs: Stages of these.
        characters: Whether errors are counted in characters.
    """

    chain: Path
    name: str
    words: tuple[str, ...]
    paths: tuple[str, ...]
    inputs: tuple[Stage, ...] = field(repr=False)
    characters: bool = False

    def made(self) -> Stage:
        """Fine-tunes in this process, or finds the result."""
        return self._stage(Chain(self.chain))

    def found(self) -> Stage:
        """The stage without its making; `done` is False where it is still to be made."""
        return self._stage(Chain(self.chain, dry_run=True))

    def _stage(self, chain: Chain) -> Stage:
        settings = {"words": self.words, "characters": self.characters, "version": VERSION}
        return chain.run(self.name, settings, list(self.inputs), lambda folder: _trained(self, folder / "run"))


def run_training(training: Training) -> Stage:
    """Fine-tunes in this process, or finds the result; checkpoints are removed afterwards.

    Returns:
        The stage, with `edits` and `length` by test speaker, the chosen checkpoint's error on validation, weights of layers, and costs.

    Raises:
        ValueError: If the fine-tuning is refused, or was stopped.
    """
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    return training.made()


def _trained(training: Training, run: Path) -> dict[str, Any]:
    summary = finetune(plain(composed("finetune", ["name=run", *training.words, *training.paths])), run)
    if not summary["complete"]:
        raise ValueError(f"{training.name} was stopped at update {summary['updates']}: the same command resumes it")
    weights = load_task_run(run, summary["test"]["chosen"]).model.layer_weights
    shutil.rmtree(run / "checkpoints")
    return {
        "by_speaker": by_speaker(run / "test.tsv", characters=training.characters),
        "validation_error": validation_error(run / "validation.csv", characters=training.characters),
        "chosen": summary["test"]["checkpoint"],
        "layers": None if weights is None else [round(value, 4) for value in weights.detach().softmax(0).tolist()],
        "commit": json.loads((run / "run.json").read_text())["segments"][-1]["commit"],
    }


def by_speaker(path: Path, *, characters: bool = False) -> dict[str, list[Any]]:
    """Sums of `test.tsv` by speaker: `speakers`, `edits`, `length`; counted again in characters if asked for."""
    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            edits, length = int(row["edits"]), int(row["length"])
            if characters:
                errors = character_errors(row["reference"], row["prediction"])
                edits, length = errors.edits, errors.length
            sums[row["speaker"]][0] += edits
            sums[row["speaker"]][1] += length
    speakers = sorted(sums)
    return {"speakers": speakers, "edits": [sums[one][0] for one in speakers], "length": [sums[one][1] for one in speakers]}


def validation_error(path: Path, *, characters: bool = False) -> float:
    """Lowest error rate of `validation.csv`, in characters if asked for."""
    with path.open(newline="") as file:
        table = csv.DictReader(file)
        judged = "character_error" if characters else list(table.fieldnames or [])[1]
        return min(float(row[judged]) for row in table)
