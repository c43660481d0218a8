"""The loop labels → train → probe → labels as one resumable chain: `openwavlm iterate`.

corpus ─ shards ─┬─ codebook ─ labels ─ train ─ export ─ probes ─┐   iteration 1 (MFCC)
                 └─ codebook ◄─ layer of the exported model ◄────┘   iteration 2, …
"""

import importlib
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.labels.teacher import open_teacher
from openwavlm.pipeline.corpora import shard_sets
from openwavlm.pipeline.iteration import Iteration, overrides
from openwavlm.pipeline.settings import IterationSettings, iteration_settings
from openwavlm.pipeline.stages import MARK, Chain, Stage, graph
from openwavlm.report.page import write_report
from openwavlm.runs.compose import composed, plain
from openwavlm.runs.gather import gather
from openwavlm.runs.init_from import check_same_architecture
from openwavlm.runtime.atomic import atomic_file, write_json, writer_lock
from openwavlm.runtime.sealed import read_sealed
from openwavlm.shards.index import Index
from openwavlm.shards.splits import shared_rows
from openwavlm.training.config import RunConfig, with_placeholders
from openwavlm.training.run_files import read_summary


def iterate(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Makes all iterations in `runs/NAME`, or the part of them that is not done; with `dry_run` nothing is made or written.

    Returns:
        Content of `summary.json`; of a dry run the result of `pipeline.stages.graph` as `stages`.

    Raises:
        ValueError: If an iteration's settings are wrong, another call works in the directory, or a stage refuses its input.
    """
    if not config["iterations"]:
        raise ValueError(
            "iterations must name at least one pass, as in iterations=[{features: mfcc, clusters: 100}], but is empty"
        )
    settings = [iteration_settings(number, values) for number, values in enumerate(config["iterations"], start=1)]
    _check_models(config, settings)
    if config["dry_run"]:
        chain = Chain(directory / "stages", dry_run=True)
        _all_stages(chain, config, settings, directory)
        return {"stages": graph(chain)}
    with writer_lock(directory):
        return _made(config, settings, directory)


def _check_models(config: dict[str, Any], settings: list[IterationSettings]) -> None:
    """Refuses, before hours of labelling, overrides, layers and warm starts that would fail in a later iteration."""
    models = [
        RunConfig.of(with_placeholders(plain(composed("train", overrides(config, *one))))).model for one in enumerate(settings, 1)
    ]
    for number, (one, model) in enumerate(zip(settings, models, strict=True), start=1):
        before = models[number - 2] if number > 1 else None
        clustered = before if one.teacher is None else open_teacher(one.teacher).model.config
        if one.layer is not None and clustered is not None and one.layer > clustered.layers:
            name = "the model before" if one.teacher is None else f"the teacher {one.teacher}"
            raise ValueError(f"iterations[{number - 1}].layer must be one of 0…{clustered.layers} of {name}, but is {one.layer}")
        if one.start == "warm" and before is not None:
            check_same_architecture(model, before, f"the model of iteration {number - 1}")


def _made(config: dict[str, Any], settings: list[IterationSettings], directory: Path) -> dict[str, Any]:
    began = time.monotonic()
    chain = Chain(directory / "stages")
    exported, result, reported = _all_stages(chain, config, settings, directory)
    for leftover in [*directory.glob("*.tmp"), *directory.glob("export/*.tmp")]:  # of a call that was killed while it published
        leftover.unlink()
    publish(directory, exported, reported)
    summary = {
        **read_summary(directory / "summary.json"),
        "format_version": 1,
        "export": result.result,
        "report": "report.html",
        "seconds": {str(stage.folder.relative_to(directory)): stage.seconds for stage in chain.stages},
        "this_call": {
            "made": [str(stage.folder.relative_to(directory)) for stage in chain.stages if stage.made],
            "wall_seconds": round(time.monotonic() - began, 1),
        },
    }
    write_json(directory / "summary.json", summary)
    return summary


def _all_stages(
    chain: Chain, config: dict[str, Any], settings: list[IterationSettings], directory: Path
) -> tuple[Stage, Stage, Stage]:
    """Runs all stages; returns those of the last export, of its check with Transformers, and of the report."""
    shards, times = shard_sets(chain, config)
    _check_disjoint(shards)
    loop = Iteration(chain, config, shards, times)
    iterations: list[dict[str, Stage]] = []
    for number, one in enumerate(settings, start=1):
        iterations.append(loop.run(number, one, iterations[-1] if iterations else None))
    exported = iterations[-1]["export"]
    result = chain.run("result", {}, [exported], lambda folder: check_with_transformers(exported.folder))
    figures = [stage for stages in iterations for name, stage in stages.items() if name in ("train", "masked", "probe")]
    reported = chain.run("report", {}, figures, lambda folder: _report(iterations, folder, directory / "export", config["name"]))
    return exported, result, reported


def _check_disjoint(shards: dict[str, Stage]) -> None:
    """Refuses, before any training, development and test sets that hold training audio."""
    if not shards["train"].done:
        return
    train = Index.open(shards["train"].folder)
    for name in ("dev", "test", "dev_clean", "test_clean"):
        if not shards[name].done:
            continue
        index = Index.open(shards[name].folder)
        rows = shared_rows(index, train)
        if rows.any():
            keys = [index.keys[row] for row in np.flatnonzero(rows)[:3]]
            raise ValueError(
                f"dev and test must hold no training audio, but {rows.sum()} of {len(index)} rows of {name} are in the training corpus "
                f"({', '.join(keys)}{', …' if rows.sum() > 3 else ''}): remove them from one of the two"
            )


def _report(iterations: list[dict[str, Stage]], folder: Path, export: Path, name: str) -> None:
    for leftover in folder.glob("*.tmp"):  # of a call that was killed while it wrote the page
        leftover.unlink()
    parts = []
    for number, stages in enumerate(iterations, start=1):
        layer = stages["codebook"].result["layer"]
        title = f"iteration {number}: labels from {'MFCC' if layer is None else f'layer {layer}'}"
        probes = stages["probe"].result if "probe" in stages else None
        part = gather(stages["train"].folder / "run", title, probes=probes, masked=stages["masked"].result)
        part.wall_seconds = stages["train"].seconds
        parts.append(part)
    commands = [
        ("features of a folder of recordings", f"openwavlm extract encoder={export} input=FOLDER output=FEATURES"),
        ("the model in Python", f"transformers.WavLMModel.from_pretrained({str(export)!r})"),
        ("the same on your own recordings", "openwavlm iterate name=mine corpora.input=DIR"),
    ]
    write_report(folder, f"OpenWavLM: {name}", parts, commands)


def check_with_transformers(exported: Path) -> dict[str, Any]:
    """Loads an export with Transformers, if installed, and returns its version; a `ValueError` if a key does not fit."""
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        return {"transformers": None}
    transformers.utils.logging.disable_progress_bar()  # it would break the log's lines
    _, loading = transformers.WavLMModel.from_pretrained(exported, output_loading_info=True)
    transformers.Wav2Vec2FeatureExtractor.from_pretrained(exported)
    wrong = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise ValueError(f"Transformers does not load {exported} as it is: {', '.join(map(str, wrong))}")
    return {"transformers": transformers.__version__}


def publish(directory: Path, exported: Stage, reported: Stage) -> None:
    """Copies the last model, the page and the figures into the run directory, unless those of the same stages are there already.

    It gets `export/`, `report.html`, the `iterations` of `summary.json`, and `published.json` with the keys of the two stages.
    """
    mark, keys = directory / "published.json", {"export": exported.key, "report": reported.key}
    wanted = [file for file in sorted(exported.folder.iterdir()) if file.name != MARK]
    places = [directory / "export" / file.name for file in wanted] + [directory / "report.html"]
    if mark.is_file() and read_sealed(mark, remedy="delete it") == keys and all(place.is_file() for place in places):
        return
    mark.unlink(missing_ok=True)
    for file, place in zip([*wanted, reported.folder / "report.html"], places, strict=True):
        with file.open("rb") as source, atomic_file(place) as target:
            shutil.copyfileobj(source, target)
    summary = directory / "summary.json"
    kept = read_summary(summary) if summary.is_file() else {}
    write_json(summary, kept | read_summary(reported.folder / "summary.json"))
    write_json(mark, keys)
