"""The loop labels → train → probe → labels as one resumable chain: `openwavlm iterate`.

corpus ─ shards ─┬─ codebook ─ labels ─ train ─ export ─ probes ─┐   iteration 1 (MFCC)
                 └─ codebook ◄─ layer of the exported model ◄────┘   iteration 2, …
"""

import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.batches.sources import OpenData
from openwavlm.evaluation.measured import ProbeSettings
from openwavlm.evaluation.paired import Sums
from openwavlm.evaluation.probe import probe_model
from openwavlm.evaluation.shard_sets import inventory, probe_set, read_phone_times
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.teacher import forget_teacher, open_teacher
from openwavlm.pipeline.corpora import SETS, shard_sets
from openwavlm.pipeline.graph import graph
from openwavlm.pipeline.listing import fingerprint
from openwavlm.pipeline.masked import masked_figures
from openwavlm.pipeline.next_layer import next_layer, pnmi_by_layer
from openwavlm.pipeline.published import check_with_transformers, publish
from openwavlm.pipeline.settings import IterationSettings, iteration_settings
from openwavlm.pipeline.stages import Chain, Stage
from openwavlm.report.content import ReportContent
from openwavlm.report.page import write_report
from openwavlm.runs.compose import composed, plain, quoted
from openwavlm.runs.export import export_run, load_run
from openwavlm.runs.gather import gather
from openwavlm.runs.init_from import check_same_architecture
from openwavlm.runs.run_directory import trajectory
from openwavlm.runtime.atomic import write_json, writer_lock
from openwavlm.runtime.processes import PARENT, ended, run_until_saved
from openwavlm.shards.index import Index
from openwavlm.shards.splits import shared_rows
from openwavlm.training.config import RunConfig, with_placeholders
from openwavlm.training.run_files import read_config, read_summary

log = logging.getLogger(__name__)


class Iteration:
    """One pass of the loop over prepared shard sets.

    Args:
        chain: Where the stages are.
        config: The whole config as plain values.
        shards: Name → stage that made the shard set.
        times: Table of phone times, or None.
    """

    def __init__(self, chain: Chain, config: dict[str, Any], shards: dict[str, Stage], times: Path | None) -> None:
        self.chain, self.config, self.shards, self.times = chain, config, shards, times

    def run(self, number: int, settings: IterationSettings, previous: dict[str, Stage] | None) -> dict[str, Stage]:
        """Makes or finds all stages of iteration `number` (from 1)."""
        book = self._codebook(number, settings, previous)
        labels = {name: self._labels(number, name, book, settings, previous) for name in SETS}
        trained = self._train(number, settings, labels, previous)
        exported = self.chain.run(f"{number}/export", {}, [trained], lambda folder: self._export(trained, folder))
        masked = self.chain.run(
            f"{number}/masked", {}, [trained, *labels.values()], lambda folder: self._masked(trained, labels["test"])[0]
        )
        probed = None
        if self.times is not None:
            inputs = [exported, *(self.shards[f"{name}_clean"] for name in SETS)]
            wanted = dict(self.config["probe"])
            if self.config["alignments"]:
                wanted["alignments"] = fingerprint(self.times)
            probed = self.chain.run(f"{number}/probe", wanted, inputs, lambda folder: self._probe(trained))
        stages = {"codebook": book, "train": trained, "export": exported, "masked": masked}
        return stages | ({"probe": probed} if probed else {}) | {f"labels-{name}": stage for name, stage in labels.items()}

    def _codebook(self, number: int, settings: IterationSettings, previous: dict[str, Stage] | None) -> Stage:
        wanted: dict[str, Any] = {"features": settings.features, "clusters": settings.clusters, **settings.codebook}
        wanted["seed"] = self.config["seed"]
        inputs = [self.shards["train"]]
        teacher: dict[str, Any] = {}
        if settings.teacher is not None:
            wanted |= {"layer": settings.layer, "teacher": open_teacher(settings.teacher).hash}
            teacher = {"teacher": Path(settings.teacher)}
        elif settings.features == "layer":
            assert previous is not None
            wanted["layer"] = self._layer(number, settings, previous)
            inputs.append(previous["export"])
            teacher = {"teacher": previous["export"].folder}

        def make(folder: Path) -> dict[str, Any]:
            book = fit_codebook(
                [self.shards["train"].folder],
                folder / "codebook",
                validation_share=0.0,
                workers=self.config["workers"],
                device=self.config["device"],
                **(wanted | teacher),
            )
            return {"hash": book.hash, "layer": wanted.get("layer")}

        return self.chain.run(f"{number}/codebook", wanted, inputs, make)

    def _layer(self, number: int, settings: IterationSettings, previous: dict[str, Stage]) -> int | None:
        """The configured layer; else `next_layer`; None: not known yet."""
        if settings.layer is not None:
            return settings.layer
        if not all(stage.done for stage in previous.values()):
            return None
        probed = previous["probe"].result if "probe" in previous else None
        return next_layer(number - 1, int(previous["train"].result["layers"]), probed)

    def _labels(
        self, number: int, name: str, book: Stage, settings: IterationSettings, previous: dict[str, Stage] | None
    ) -> Stage:
        teacher = Path(settings.teacher) if settings.teacher else None
        if teacher is None and settings.features == "layer" and previous:
            teacher = previous["export"].folder

        def make(folder: Path) -> None:
            assign_labels(
                self.shards[name].folder,
                book.folder / "codebook",
                folder / "labels",
                teacher=teacher,
                workers=self.config["workers"],
                device=self.config["device"],
            )

        return self.chain.run(f"{number}/labels-{name}", {}, [book, self.shards[name]], make)

    def _train(
        self, number: int, settings: IterationSettings, labels: dict[str, Stage], previous: dict[str, Stage] | None = None
    ) -> Stage:
        overrides, inputs = _overrides(self.config, number, settings), list(labels.values())
        wanted = _trajectory(overrides)
        shards = {name: quoted(self.shards[name].folder) for name in ("train", "dev")}
        labelled = {name: quoted(labels[name].folder / "labels") for name in shards}
        data = [
            "data.validation_share=0",
            f"data.sources.speech.shards={shards['train']}",
            f"data.sources.speech.labels={labelled['train']}",
            f"+data.validation.dev={{shards: {shards['dev']}, labels: {labelled['dev']}}}",
        ]

        encoder = "random weights"
        if settings.start == "warm":
            assert previous is not None
            data.append(f"init_from={quoted(previous['export'].folder)}")
            inputs.append(previous["export"])
            wanted["start"] = "warm"
            encoder = f"the encoder of iteration {number - 1}"

        def make(folder: Path) -> dict[str, Any]:
            log.info("iteration %d begins with %s; its head is new, as its labels are", number, encoder)
            program = [sys.executable, "-m", "openwavlm", "train", f"hydra.run.dir={quoted(folder / 'run')}"]
            parent = {PARENT: str(os.getpid())}
            forget_teacher()  # the training is another process and needs the GPU's memory
            status = run_until_saved([*program, *overrides, *data], os.environ | parent)
            if status:
                how = ended(status)
                more = ": see above; the same command goes on" if status > 0 and "goes on" not in how else ""
                raise ValueError(f"training of iteration {number} {how}{more}")
            summary = read_summary(folder / "run" / "summary.json")
            if not summary.get("complete"):
                raise ValueError(
                    f"training of iteration {number} was stopped at update {summary.get('updates', 0)}: the same command goes on"
                )
            config = RunConfig.of(read_config(folder / "run" / "config.yaml"))
            return {"layers": config.model.layers, **summary.get("this_launch", {})}

        return self.chain.run(f"{number}/train", wanted, inputs, make)

    def _export(self, trained: Stage, folder: Path) -> dict[str, Any]:
        export_run(trained.folder / "run", folder)
        return {}

    def _masked(self, trained: Stage, test_labels: Stage, *, counted: bool = True) -> tuple[dict[str, Any], Sums]:
        config = self._with_test(trained, test_labels)
        opened = OpenData(config.data, config.batch, config.seed)
        try:
            model, _ = load_run(trained.folder / "run")
            return masked_figures(model, config, opened, train="speech", dev="dev", test="test", counted=counted)
        finally:
            opened.close()

    def _with_test(self, trained: Stage, test_labels: Stage) -> RunConfig:
        """The run's config, with the test set, which training never opened, as another set to validate on."""
        config = read_config(trained.folder / "run" / "config.yaml")
        test = {"shards": str(self.shards["test"].folder), "labels": str(test_labels.folder / "labels")}
        config["data"]["validation"]["test"] = test
        return RunConfig.of(config)

    def _probe(self, trained: Stage) -> dict[str, Any]:
        assert self.times is not None
        settings = dict(self.config["probe"])
        times = read_phone_times(self.times, fold_stress=settings.pop("fold_stress"))
        phones = inventory(times)
        train = (
            probe_set(self.shards["train_clean"].folder, times, phones)
            .spread_over_speakers(settings.pop("train_seconds"))
            .readable()
        )
        dev = probe_set(self.shards["dev_clean"].folder, times, phones).readable()
        test = probe_set(self.shards["test_clean"].folder, times, phones).readable()
        model, _ = load_run(trained.folder / "run")
        cache = self.chain.folder / "baselines"
        figures = probe_model(model.wavlm, train, dev, test, ProbeSettings(**settings), cache=cache)
        return figures | {"pnmi_of_layers": pnmi_by_layer(model.wavlm, train, dev, ProbeSettings(**settings))}


def _overrides(config: dict[str, Any], number: int, settings: IterationSettings) -> list[str]:
    """What the training of iteration `number` is asked for, but for its data."""
    updates = [f"optim.updates={settings.updates}"] if settings.updates else []
    return [f"name=iteration-{number}", *config["overrides"], *settings.overrides, f"seed={config['seed']}", *updates]


def _trajectory(overrides: list[str]) -> dict[str, Any]:
    """What decides how a training comes out, presets resolved; its data are named by the stages that it builds on.

    Raises:
        ValueError: If `train.py` would refuse an override.
    """
    return trajectory(plain(composed("train", overrides)))


def iterate(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Runs all iterations, or what is left of them.

    Args:
        config: `conf/iterate.yaml` as plain values; with `dry_run` nothing is made or written.
        directory: Run directory, `runs/NAME`.

    Returns:
        What is written to `summary.json`; of a dry run the graph, as `pipeline.graph.graph` has it.

    Raises:
        ValueError: If an iteration asks for what cannot be, another call works in the directory, or a stage refuses its input.
    """
    if not config["iterations"]:
        raise ValueError(
            "iterations must name at least one pass, as in iterations=[{features: mfcc, clusters: 100}], but is empty"
        )
    settings = [iteration_settings(number, values) for number, values in enumerate(config["iterations"], start=1)]
    _check_models(config, settings)  # what cannot be is answered before an hour of labelling
    if config["dry_run"]:
        chain = Chain(directory / "stages", dry_run=True)
        _all_stages(chain, config, settings, directory)
        return {"stages": graph(chain)}
    with writer_lock(directory):
        return _made(config, settings, directory)


def _all_stages(
    chain: Chain, config: dict[str, Any], settings: list[IterationSettings], directory: Path
) -> tuple[Stage, Stage, Stage]:
    """All stages; returns those of the last model, of its check with Transformers, and of page and figures."""
    shards, times = shard_sets(chain, config)
    _check_unheard(shards)
    loop = Iteration(chain, config, shards, times)
    iterations: list[dict[str, Stage]] = []
    for number, one in enumerate(settings, start=1):
        iterations.append(loop.run(number, one, iterations[-1] if iterations else None))
    exported = iterations[-1]["export"]
    result = chain.run("result", {}, [exported], lambda folder: check_with_transformers(exported.folder))
    figures = [stage for stages in iterations for name, stage in stages.items() if name in ("train", "masked", "probe")]
    reported = chain.run("report", {}, figures, lambda folder: _report(iterations, folder, directory / "export", config["name"]))
    return exported, result, reported


def _check_unheard(shards: dict[str, Stage]) -> None:
    """Refuses dev and test audio that is training audio, before anything is trained.

    Raises:
        ValueError: Naming the set and some of its rows.
    """
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
                f"dev and test audio must be unheard by the model, but {rows.sum()} of {len(index)} rows of {name} are in the training "
                f"corpus ({', '.join(keys)}{', …' if rows.sum() > 3 else ''}): take them out of one of the two"
            )


def _check_models(config: dict[str, Any], settings: list[IterationSettings]) -> None:
    """Refuses what would fail iterations later.

    Raises:
        ValueError: If `train.py` would refuse an override; if a layer is not one of the model before; if a warm start is of another
            model.
    """
    models = [
        RunConfig.of(with_placeholders(plain(composed("train", _overrides(config, *one))))).model
        for one in enumerate(settings, 1)
    ]
    for number, (one, model) in enumerate(zip(settings, models, strict=True), start=1):
        before = models[number - 2] if number > 1 else None
        clustered = before if one.teacher is None else open_teacher(one.teacher).model.config
        if one.layer is not None and clustered is not None and one.layer > clustered.layers:
            whose = "the model before" if one.teacher is None else f"the teacher {one.teacher}"
            raise ValueError(
                f"iterations[{number - 1}].layer must be one of 0…{clustered.layers} of {whose}, but is {one.layer}: correct it"
            )
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


def _report(iterations: list[dict[str, Stage]], folder: Path, export: Path, name: str) -> dict[str, Any]:
    for leftover in folder.glob("*.tmp"):  # of a call that was killed while it wrote the page
        leftover.unlink()
    parts = []
    for number, stages in enumerate(iterations, start=1):
        probes = stages["probe"].result if "probe" in stages else None
        trained = stages["train"]
        layer = stages["codebook"].result["layer"]
        title = f"iteration {number}: labels from {'MFCC' if layer is None else f'layer {layer}'}"
        part = gather(trained.folder / "run", title, probes=probes, masked=stages["masked"].result)
        part.wall_seconds = trained.seconds
        parts.append(part)
    commands = [
        ("features of a folder of recordings", f"openwavlm extract encoder={export} input=FOLDER output=FEATURES"),
        ("the model in Python", f"transformers.WavLMModel.from_pretrained({str(export)!r})"),
        ("the same on your own recordings", "openwavlm iterate name=mine corpora.input=DIR"),
    ]
    write_report(folder, ReportContent(f"OpenWavLM: {name}", parts, commands=commands))
    return {}
