"""The Markdown page of `downstream`: first where a pre-trained model does not beat the controls, then every table."""

import os
import platform
from typing import Any

from downstream_errors import UNTRAINED, Comparison
from tables import ABSENT, Figure, seeds, sentence, table

SYSTEM_NAMES = {
    "libri": "nano on LibriSpeech excerpts",
    "demo": "the demo's model",
    UNTRAINED: "untrained encoder",
    "mfcc": "MFCC ± 5",
    "log_mel": "log-mel ± 5",
}
TASKS = {
    "digits": Figure("class error of digits by classification (share)", higher_is_better=False, places=4),
    "digits_ctc": Figure("character error of digits by CTC (share)", higher_is_better=False, places=4),
    "phones": Figure("phone error on aligned phrases (share)", higher_is_better=False, places=4),
    "speech": Figure("character error of read speech by CTC (share)", higher_is_better=False, places=4),
}
_WORDS = {"higher": "better than", "lower": "worse than", "equal": "equal to", "unknown": "not comparable with"}
_OF_ERROR = {"higher": "worse than", "lower": "better than", "equal": "equal to", "unknown": "not comparable with"}


def page(summary: dict[str, Any], found: dict[str, dict[str, Comparison]]) -> str:
    """Renders the page.

    Args:
        summary: `summary.json` of `downstream`.
        found: Task → model → its comparison.
    """
    primary = summary["primary"]
    lines = ["# What pre-training brings to small tasks with a frozen encoder", "", *limits(found), ""]
    lines += [_origin(summary.get("changed") or []), "", f"**Primary outcome** ({TASKS[primary['task']].title}):", ""]
    for model in primary["models"]:
        one = found[primary["task"]][model]
        for other in (UNTRAINED, one.control[0]):
            lines.append(
                f"- {sentence(TASKS[primary['task']], SYSTEM_NAMES[model], SYSTEM_NAMES[other], one.differences[other])}"
            )
    lines += ["", "## How to read it", "", *(f"- {text}" for text in summary["interpretation"]), "", *_method(summary)]
    lines += ["", "## All systems", "", *_all_systems(summary)]
    for task in (primary["task"], *summary["secondary"]):
        name = TASKS[task].name
        lines += ["", f"## {name[0].upper()}{name[1:]}"]
        for model, one in found[task].items():
            for other, apart in one.differences.items():
                of, against = SYSTEM_NAMES[model], SYSTEM_NAMES[other]
                lines += ["", *table({task: apart}, TASKS, of, against, visible=True)]
            words = (
                sentence(TASKS[task], SYSTEM_NAMES[model], SYSTEM_NAMES[other], apart) for other, apart in one.differences.items()
            )
            lines += ["", *(f"- {text}" for text in words)]
    return "\n".join([*lines, "", *_rates(summary), *_layers(summary), *_cost(summary)]) + "\n"


def limits(found: dict[str, dict[str, Comparison]]) -> list[str]:
    """A line for each task and model that does not beat the untrained encoder or the best control; one line if there is none."""
    lines = []
    for task, of_task in found.items():
        for model, one in of_task.items():
            untrained, (control, against) = one.differences[UNTRAINED].verdict, one.control
            if untrained == "lower" and against == "higher":
                continue
            name = TASKS[task].name
            lines.append(
                f"- {name[0].upper()}{name[1:]}: **{SYSTEM_NAMES[model]}** is {_OF_ERROR[untrained]} the untrained encoder "
                f"and {_WORDS[against]} the control that decides, {SYSTEM_NAMES[control]}."
            )
    if not lines:
        return ["In every task both pre-trained models beat the untrained encoder and both controls."]
    return ["**Where a pre-trained model does not beat the untrained encoder or the best control:**", "", *lines]


def _origin(changed: list[str]) -> str:
    if changed:
        return (
            "Written by `studies/downstream.py` with other settings than those of `studies/downstream.yaml`: "
            f"`{' '.join(changed)}`. It is not the study that was fixed there."
        )
    return (
        "Written by `make study NAME=downstream data=DIR` from `runs/downstream/summary.json`. Systems, tasks, outcomes and their reading "
        "were fixed in `studies/downstream.yaml` before the first run."
    )


def _method(summary: dict[str, Any]) -> list[str]:
    count, pretraining = len(summary["seeds"]), summary["pretraining"]
    tasks = "; ".join(f"`{name}`: `{' '.join(asked['words'])}`" for name, asked in summary["tasks"].items())
    tried = ", ".join(f"{rate:g}" for rate in summary["rates"])
    return [
        f"Systems: {SYSTEM_NAMES['libri']} (`libri`, the demo's first iteration, {pretraining['updates']} updates on the "
        "study's part of train-clean-100, one model for all seeds), the demo's model (`demo`, synthetic speech), an encoder of its "
        "architecture with random weights, and two controls, normalised over the utterance, of a frame and five to each side.",
        "",
        "The encoder is frozen; the head reads a trained weighted sum of all layers. Every fine-tuning has "
        f"{summary['updates']} updates, {count} seeds and the settings `{' '.join(summary['finetune'])}`; {tasks}. The rate of each task "
        f"and system is the one of {tried} with the lowest error on the validation part of the first fold and seed (table below). The "
        "checkpoint is chosen on the validation part; the test part decides nothing (trials of rates measure it too, unused).",
        "",
        "Data: digits of six speakers (FSDD), each the test of one fold, the next one its validation; phones of two groups of recordings "
        "(autovot, without stress and pauses), each the test of one fold, a share of the other's utterances its validation; read speech of "
        "train-clean-100 to test-other. *Equal*: the 95 % interval over test speakers and seeds, both of which vary (docs/decisions/0009), "
        "contains 0; *visible from*: the smallest true difference that would be found with a probability of 80 %.",
    ]


def _all_systems(summary: dict[str, Any]) -> list[str]:
    """Error rates of all systems: mean and each seed."""
    kinds = [TASKS[task] for task in summary["tasks"]]
    lines = [f"| test speakers, mean (seeds) | {' | '.join(kind.title for kind in kinds)} |", f"|---{'|---' * len(kinds)}|"]
    for system, name in SYSTEM_NAMES.items():
        cells = []
        for task in summary["tasks"]:
            of = [sum(one["edits"]) / max(1, sum(one["length"])) for one in summary["sums"][task][system]]
            cells.append(seeds(TASKS[task], of) if of else ABSENT)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _rates(summary: dict[str, Any]) -> list[str]:
    """Errors on validation at each rate, from which the rates were chosen."""
    rates = [f"{rate:g}" for rate in summary["rates"]]
    lines = ["## Rates", "", "Error on the validation part of the first fold and seed at each rate; the chosen rate is bold.", ""]
    lines += [f"| task | system | {' | '.join(rates)} |", f"|---|---{'|---' * len(rates)}|"]
    for task, of in summary["rate_errors"].items():
        for name in of:
            chosen = f"{summary['chosen_rates'][task][name]:g}"
            cells = [f"**{of[name][rate]:.4f}**" if rate == chosen else f"{of[name][rate]:.4f}" for rate in rates]
            lines.append(f"| {TASKS[task].name} | {SYSTEM_NAMES[name]} | {' | '.join(cells)} |")
    return [*lines, ""]


def _layers(summary: dict[str, Any]) -> list[str]:
    """Weights of layers that the heads learnt: mean over folds and seeds."""
    lines = ["## Weights of the layers", "", "Mean over folds and seeds, from the encoder's input to its last layer.", ""]
    lines += ["| task | system | weights |", "|---|---|---|"]
    for task, of in summary["layers"].items():
        lines += [
            f"| {TASKS[task].name} | {SYSTEM_NAMES[name]} | {', '.join(f'{value:.2f}' for value in of[name])} |" for name in of
        ]
    return [*lines, ""]


def _cost(summary: dict[str, Any]) -> list[str]:
    least, most, total = summary["training_seconds"]
    return [
        f"Cost: {summary['trainings']} fine-tunings of {least:.0f} to {most:.0f} s, {total / 3600:.1f} hours in all if "
        f"one after the other; pre-training of `libri` {summary['pretraining_seconds'] / 60:.0f} minutes. "
        f"Commit {', '.join(commit[:10] for commit in summary['commits'])}; {summary['machine']}.",
    ]


def machine() -> str:
    """Processor and number of cores of this machine."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo") as file:  # noqa: PTH123
            name = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {os.cpu_count()} cores"
