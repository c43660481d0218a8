"""Errors of the study's fine-tunings by test speaker, and each pre-trained model against the other systems."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from openwavlm.evaluation.intervals import Outcome, deciding
from openwavlm.evaluation.paired import Difference, Sums, difference

MODELS = ("libri", "demo")
UNTRAINED = "untrained"
CONTROLS = ("mfcc", "log_mel")
SYSTEMS = (*MODELS, UNTRAINED, *CONTROLS)
_FLIPPED: dict[Outcome, Outcome] = {"higher": "lower", "lower": "higher", "equal": "equal", "unknown": "unknown"}
Place = tuple[str, str, int, int]  # task, system, seed, number of the fold
Errors = dict[str, list[Any]]  # `speakers`, `edits` and `length`, each by test speaker


@dataclass(frozen=True)
class Comparison:
    """A model against the other systems of a task.

    Attributes:
        differences: Other system → difference of the errors, model less other.
        control: The control that decides, and the outcome against all of them in terms of accuracy.
    """

    differences: dict[str, Difference]
    control: tuple[str, Outcome]

    def as_json(self) -> dict[str, Any]:
        """Plain values; `controls` is `higher` where the model is better than all controls."""
        found = {name: one.as_json() for name, one in self.differences.items()}
        return {"differences": found, "decides": self.control[0], "controls": self.control[1]}


def summarised(config: dict[str, Any], found: dict[Place, dict[str, Any]]) -> dict[str, Any]:
    """Content of `summary.json` but its costs, from the result of each fine-tuning."""
    sums: dict[str, dict[str, list[Errors]]] = {}
    layers: dict[str, dict[str, list[float]]] = {}
    for task in config["tasks"]:
        of = {place: result for place, result in found.items() if place[0] == task}
        sums[task] = {
            system: [
                merged([one["by_speaker"] for place, one in of.items() if place[1:3] == (system, seed)])
                for seed in config["seeds"]
            ]
            for system in SYSTEMS
        }
        weights = {
            system: [one["layers"] for place, one in of.items() if place[1] == system and one["layers"]] for system in SYSTEMS
        }
        layers[task] = {name: np.mean(of_system, axis=0).round(3).tolist() for name, of_system in weights.items() if of_system}
    comparisons = compared(config, sums)
    copied = ("seeds", "updates", "finetune", "rates", "tasks", "primary", "secondary", "interpretation")
    return {
        "format_version": 1,
        **{name: config[name] for name in copied},
        "pretraining": config["iterations"][0],
        "changed": config.get("changed") or [],
        "comparisons": {task: {name: one.as_json() for name, one in of.items()} for task, of in comparisons.items()},
        "sums": sums,
        "layers": layers,
        "commits": sorted({str(result["commit"]) for result in found.values()}),
    }


def merged(parts: list[Errors]) -> Errors:
    """Errors of several folds, with speakers in order of their names; each speaker is tested in one fold."""
    rows = sorted(row for part in parts for row in zip(part["speakers"], part["edits"], part["length"], strict=True))
    return {name: [row[place] for row in rows] for place, name in enumerate(("speakers", "edits", "length"))}


def compared(config: dict[str, Any], sums: dict[str, dict[str, list[Errors]]]) -> dict[str, dict[str, Comparison]]:
    """Task → model → its comparison, from the errors by speaker of each task, system and seed."""
    return {task: {model: _comparison(sums[task], model) for model in MODELS} for task in config["tasks"]}


def _comparison(of_task: dict[str, list[Errors]], model: str) -> Comparison:
    sums = {
        system: [Sums(tuple(one["speakers"]), np.array(one["edits"], float), np.array(one["length"], float)) for one in of]
        for system, of in of_task.items()
    }
    differences = {other: difference(sums[model], sums[other]) for other in (UNTRAINED, *CONTROLS)}
    outcomes = {name: _FLIPPED[differences[name].verdict] for name in CONTROLS}
    return Comparison(differences, deciding(outcomes, {name: -float(np.mean(differences[name].against)) for name in CONTROLS}))
