"""Fine-tuning on small real sets: `python studies/downstream.py input=DIR` (`make study NAME=downstream data=DIR`).

tables ─► shard sets ─┬─ LibriSpeech: MFCC labels ─► nano `libri` ─┐
                      │               the demo's export: `demo` ───┼─► task × fold × seed × system ─► errors by test speaker,
                      └─ digits, phones, read speech; controls ────┘   differences, intervals ─► docs/studies/downstream.md

Systems, tasks, outcomes and their reading stand in downstream.yaml. Fine-tunings run in worker processes that stay alive; each is a stage.
"""

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from arms import run_study, this_call, write_page, write_results
from downstream_errors import CONTROLS, MODELS, SYSTEMS, UNTRAINED, Place, compared, summarised
from downstream_page import TASKS, machine, page
from downstream_runs import Training, run_training
from downstream_sets import SPEECH, task_sets
from openwavlm.pipeline.iteration import Iteration
from openwavlm.pipeline.settings import iteration_settings
from openwavlm.pipeline.stages import Chain, Stage, fingerprint
from openwavlm.runs.compose import quoted
from openwavlm.runs.export import export_run
from openwavlm.runtime.pool import run_jobs


def downstream(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Makes sets, pre-trains and fine-tunes as far as not done, and compares.

    Args:
        config: `studies/downstream.yaml` as plain values.
        directory: Run directory, `runs/NAME`.

    Returns:
        Content of `summary.json`; `evidence.md` beside it is the page, a copy of which is written to `page`.

    Raises:
        ValueError: If a task or model does not exist, a table or the demo's model is missing, or a stage refuses its input.
    """
    began = time.monotonic()
    check(config)
    chain = Chain(directory / "stages")
    sets = task_sets(chain, Path(config["input"]))
    models = {"demo": demo_model(chain, Path(config["demo"])), "libri": _libri(chain, config, sets)}
    tried = _tried(chain, config, sets, models)
    errors = rate_errors({rate: {place: stage.result for place, stage in of.items()} for rate, of in tried.items()})
    rates = chosen_rates(errors)
    stages = _results(chain, dict(trainings(chain.folder, config, sets, models, rates)), config["parallel"], "fine-tunings")
    seconds = list({stage.key: stage.seconds for of in (*tried.values(), stages) for stage in of.values()}.values())
    summary = summarised(config, {place: stage.result for place, stage in stages.items()}) | {
        "chosen_rates": rates,
        "rate_errors": errors,
        "trainings": len(seconds),
        "training_seconds": [min(seconds), max(seconds), round(sum(seconds), 1)],
        "pretraining_seconds": round(sum(one.seconds for one in chain.stages if one.folder.parent == chain.folder / "1"), 1),
        "machine": machine(),
        "this_call": this_call(chain, directory, began),
    }
    text = page(summary, compared(config, summary["sums"]))
    write_results(directory, summary, text)
    if config["page"]:
        write_page(Path(__file__).resolve().parents[1] / config["page"], text)
    return summary


def check(config: dict[str, Any]) -> None:
    """Refuses outcomes that name no task or model."""
    for name in (config["primary"]["task"], *config["secondary"], *config["tasks"]):
        if name not in TASKS or name not in config["tasks"]:
            raise ValueError(f"primary, secondary and tasks name the task {name}, but there are {', '.join(TASKS)}")
    for name in config["primary"]["models"]:
        if name not in MODELS:
            raise ValueError(f"primary names the model {name}, but there are {', '.join(MODELS)}")


def demo_model(chain: Chain, path: Path) -> Stage:
    """Copy of the demo's model, from its run, a training of it, or an export."""
    training = (path / "config.yaml").is_file() and (path / "run.json").is_file()
    folder = path / "export" if not training and (path / "export").is_dir() else path
    weights = path / "checkpoints" if training else folder / "model.safetensors"
    if not weights.exists():
        raise ValueError(f"the study compares the demo's model, but there is no {weights}: run make demo, or give demo=EXPORT")

    def make(made: Path) -> None:
        shutil.rmtree(made / "model", ignore_errors=True)
        if training:
            export_run(path, made / "model")
        else:
            shutil.copytree(folder, made / "model")

    return chain.run("models/demo", {"weights": fingerprint(weights)}, [], make)


def _libri(chain: Chain, config: dict[str, Any], sets: dict[str, Stage]) -> Stage:
    """Export of a nano model, pre-trained on the excerpts of LibriSpeech."""
    iteration = Iteration(chain, config, {name: sets[name] for name in SPEECH}, None)
    return iteration.run(1, iteration_settings(1, config["iterations"][0]), None)["export"]


def _results(chain: Chain, jobs: dict[Place, Training], parallel: int, title: str) -> dict[Place, Stage]:
    """Stage of each fine-tuning, made in worker processes where it is not done."""
    # New processes for each seed: a trainer leaves some memory behind.
    for seed in dict.fromkeys(place[2] for place in jobs):
        to_do = [job for place, job in jobs.items() if place[2] == seed and not job.found().done]
        chain.stages += run_jobs(run_training, to_do, workers=parallel, description=f"{title}, seed {seed}")
    return {place: job.found() for place, job in jobs.items()}


def _tried(
    chain: Chain, config: dict[str, Any], sets: dict[str, Stage], models: dict[str, Stage]
) -> dict[float, dict[Place, Stage]]:
    """Fine-tunings of the first fold and seed at each rate; those at a chosen rate are used again."""
    first = config | {"seeds": config["seeds"][:1], "folds": 1}
    found = {}
    for rate in config["rates"]:
        everywhere = dict.fromkeys(config["tasks"], dict.fromkeys(SYSTEMS, rate))
        jobs = dict(trainings(chain.folder, first, sets, models, everywhere))
        found[rate] = _results(chain, jobs, config["parallel"], f"fine-tunings at the rate {rate:g}")
    return found


def rate_errors(found: dict[float, dict[Place, dict[str, Any]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Task → system → rate → error on validation, from the results at each rate."""
    errors: dict[str, dict[str, dict[str, float]]] = {}
    for rate, results in found.items():
        for (task, system, *_), result in results.items():
            errors.setdefault(task, {}).setdefault(system, {})[f"{rate:g}"] = round(result["validation_error"], 5)
    return errors


def chosen_rates(errors: dict[str, dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Task → system → the rate with the lowest error; of equal ones the lowest rate."""
    return {
        task: {system: float(min(of, key=lambda rate: (of[rate], float(rate)))) for system, of in by.items()}
        for task, by in errors.items()
    }


def trainings(
    folder: Path, config: dict[str, Any], sets: dict[str, Stage], models: dict[str, Stage], rates: dict[str, dict[str, float]]
) -> Iterator[tuple[Place, Training]]:
    """(task, system, seed, number of the fold) and fine-tuning of each, seed by seed, so that a stopped study has whole pairs."""
    inits = {"demo": quoted(models["demo"].folder / "model"), "libri": quoted(models["libri"].folder)}
    every = max(1, config["updates"] // 2)
    common = [*config["finetune"], f"optim.updates={config['updates']}"]
    common += [f"callbacks.validate_every={every}", f"callbacks.checkpoint_every={every}"]
    for seed in config["seeds"]:
        for task, asked in config["tasks"].items():
            of_set = SPEECH if asked["set"] == "speech" else (asked["set"],)
            paths = [f"data.sources.speech.shards={quoted(sets[of_set[0]].folder)}"]
            if asked["set"] == "speech":
                paths += [f"+data.validation.dev.shards={quoted(sets['dev'].folder)}"]
                paths += [f"+data.test.other.shards={quoted(sets['test'].folder)}"]
            for number, fold in enumerate(folds(asked["set"], sets)[: config["folds"]]):
                for system in SYSTEMS:
                    source = "demo" if system == UNTRAINED else system
                    words = [*common, *asked["words"], f"optim.lr={rates[task][system]}", *fold, f"seed={seed}"]
                    words += ["untrained=true"] if system == UNTRAINED else [f"init={system}"] if system in CONTROLS else []
                    yield (
                        (task, system, seed, number),
                        Training(
                            folder,
                            f"{task}/{system}-{number}-{seed}",
                            tuple(words),
                            (*paths, f"init={inits[source]}") if source in inits else tuple(paths),
                            (*(sets[name] for name in of_set), *([models[source]] if source in models else [])),
                            characters="task=ctc" in asked["words"],
                        ),
                    )


def folds(name: str, sets: dict[str, Stage]) -> list[list[str]]:
    """Overrides of each fold: a test speaker with the next one for validation, a test group, or the sets of read speech as they are."""
    if name == "speech":
        return [["data.validation_share=0"]]
    speakers = sets[name].result["speakers"]
    if name == "phones":
        return [[f"data.test_speakers=['{speaker}']"] for speaker in speakers]
    following = [*speakers[1:], speakers[0]]
    return [
        [f"data.test_speakers=[{one}]", f"data.validation_speakers=[{other}]", "data.validation_share=0"]
        for one, other in zip(speakers, following, strict=True)
    ]


def _outcome(summary: dict[str, Any]) -> Any:
    primary = summary["primary"]
    return {name: summary["comparisons"][primary["task"]][name] for name in primary["models"]}


if __name__ == "__main__":
    run_study("downstream", downstream, _outcome)
