"""The loop labels → train → probe → labels as one resumable chain: `openwavlm iterate`.

corpus ─ shards ─┬─ codebook ─ labels ─ train ─ export ─ probes ─┐   iteration 1 (MFCC)
                 └─ codebook ◄─ layer of the exported model ◄────┘   iteration 2, …
"""

import importlib
import json
import logging
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from openwavlm.build import objects, plain
from openwavlm.cli import command, composed
from openwavlm.data.atomic import write_json, writer_lock
from openwavlm.data.index import Index
from openwavlm.data.sources import OpenData
from openwavlm.export import export_run, load_run
from openwavlm.iteration.corpora import SETS, shard_sets
from openwavlm.iteration.graph import graph, graph_lines
from openwavlm.iteration.masked import masked_figures
from openwavlm.iteration.next_layer import next_layer, pnmi_by_layer
from openwavlm.iteration.settings import IterationSettings, iteration_settings
from openwavlm.iteration.stages import MARK, Chain, Stage
from openwavlm.labelling.assign import assign_labels
from openwavlm.labelling.fit import fit_codebook
from openwavlm.probes.measured import ProbeSettings
from openwavlm.probes.probe import probe_model
from openwavlm.probes.sets import contamination
from openwavlm.probes.shard_sets import inventory, probe_set, read_phone_times
from openwavlm.processes import PARENT
from openwavlm.report.content import ReportContent
from openwavlm.report.page import write_report
from openwavlm.report_command import gather
from openwavlm.training.run_directory import trajectory

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
            f"{number}/masked", {}, [trained, *labels.values()], lambda folder: self._masked(trained, labels["test"])
        )
        probed = None
        if self.times is not None:
            inputs = [exported, *(self.shards[f"{name}_clean"] for name in SETS)]
            probed = self.chain.run(f"{number}/probe", dict(self.config["probe"]), inputs, lambda folder: self._probe(trained))
        stages = {"codebook": book, "train": trained, "export": exported, "masked": masked}
        return stages | ({"probe": probed} if probed else {}) | {f"labels-{name}": stage for name, stage in labels.items()}

    def _codebook(self, number: int, settings: IterationSettings, previous: dict[str, Stage] | None) -> Stage:
        wanted: dict[str, Any] = {"features": settings.features, "clusters": settings.clusters, **settings.codebook}
        wanted["seed"] = self.config["seed"]
        inputs = [self.shards["train"]]
        teacher: dict[str, Any] = {}
        if settings.features == "layer":
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
                **wanted,
                **teacher,
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
        teacher = previous["export"].folder if settings.features == "layer" and previous else None

        def make(folder: Path) -> None:
            assign_labels(
                self.shards[name].folder,
                book.folder / "codebook",
                folder / "labels",
                teacher=teacher,
                workers=self.config["workers"],
            )

        return self.chain.run(f"{number}/labels-{name}", {}, [book, self.shards[name]], make)

    def _train(
        self, number: int, settings: IterationSettings, labels: dict[str, Stage], previous: dict[str, Stage] | None = None
    ) -> Stage:
        overrides, inputs = _overrides(self.config, number, settings), list(labels.values())
        wanted = _trajectory(overrides)
        data = [
            "data.validation_share=0",
            f"data.sources.speech.shards={self.shards['train'].folder}",
            f"data.sources.speech.labels={labels['train'].folder / 'labels'}",
            f"+data.validation.dev={{shards: {self.shards['dev'].folder}, labels: {labels['dev'].folder / 'labels'}}}",
        ]

        encoder = "random weights"
        if settings.start == "warm":
            assert previous is not None
            data.append(f"init_from={previous['export'].folder}")
            inputs.append(previous["export"])
            wanted["start"] = "warm"
            encoder = f"the encoder of iteration {number - 1}"

        def make(folder: Path) -> dict[str, Any]:
            log.info("iteration %d begins with %s; its head is new, as its labels are", number, encoder)
            program = [sys.executable, "-m", "openwavlm", "train", f"hydra.run.dir={folder / 'run'}"]
            parent = {PARENT: str(os.getpid())}
            status = subprocess.run([*program, *overrides, *data], check=False, env=os.environ | parent).returncode
            if status:
                raise ValueError(
                    f"training of iteration {number} ended with status {status}: see above; the same command goes on"
                )
            summary = json.loads((folder / "run" / "summary.json").read_text())
            if not summary["complete"]:
                raise ValueError(
                    f"training of iteration {number} was stopped at update {summary['updates']}: the same command goes on"
                )
            parts = objects(yaml.safe_load((folder / "run" / "config.yaml").read_text()))
            return {"layers": parts["model"].layers, **summary["this_launch"]}

        return self.chain.run(f"{number}/train", wanted, inputs, make)

    def _export(self, trained: Stage, folder: Path) -> dict[str, Any]:
        export_run(trained.folder / "run", folder)
        return {}

    def _masked(self, trained: Stage, test_labels: Stage) -> dict[str, Any]:
        parts, seed = self._with_test(trained, test_labels)
        opened = OpenData(parts["data"], parts["batch"], seed)
        try:
            model, _ = load_run(trained.folder / "run")
            return masked_figures(model, parts, opened, train="speech", dev="dev", test="test")
        finally:
            opened.close()

    def _with_test(self, trained: Stage, test_labels: Stage) -> tuple[dict[str, Any], int]:
        """The run's objects and seed, with the test set, which training never opened, as another set to validate on."""
        config = yaml.safe_load((trained.folder / "run" / "config.yaml").read_text())
        test = {"shards": str(self.shards["test"].folder), "labels": str(test_labels.folder / "labels")}
        config["data"]["validation"]["test"] = test
        return objects(config), config["seed"]

    def _probe(self, trained: Stage) -> dict[str, Any]:
        assert self.times is not None
        settings = dict(self.config["probe"])
        times = read_phone_times(self.times, fold_stress=settings.pop("fold_stress"))
        phones = inventory(times)
        train = probe_set(self.shards["train_clean"].folder, times, phones).spread_over_speakers(settings.pop("train_seconds"))
        dev = probe_set(self.shards["dev_clean"].folder, times, phones)
        test = probe_set(self.shards["test_clean"].folder, times, phones)
        contamination(test, [(Index.open(self.shards["train"].folder), None)])
        model, _ = load_run(trained.folder / "run")
        cache = self.chain.folder / "baselines"
        figures = probe_model(model.wavlm, train, dev, test, ProbeSettings(**settings), cache=cache)
        return figures | {"layer_pnmi": pnmi_by_layer(model.wavlm, train, dev, ProbeSettings(**settings))}


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
        What is written to `summary.json`; of a dry run the graph, as `iteration.graph.graph` has it.

    Raises:
        ValueError: If an iteration asks for what cannot be, another call works in the directory, or a stage refuses its input.
    """
    settings = [iteration_settings(number, values) for number, values in enumerate(config["iterations"], start=1)]
    for number, one in enumerate(settings, start=1):
        _trajectory(_overrides(config, number, one))  # a misspelt override is answered before an hour of labelling
    if config["dry_run"]:
        chain = Chain(directory / "stages", dry_run=True)
        _all_stages(chain, config, settings, directory)
        return {"stages": graph(chain)}
    with writer_lock(directory):
        return _made(config, settings, directory)


def _all_stages(
    chain: Chain, config: dict[str, Any], settings: list[IterationSettings], directory: Path
) -> tuple[list[dict[str, Stage]], Stage]:
    """The stages of each iteration, and the one that published the last model."""
    shards, times = shard_sets(chain, config)
    loop = Iteration(chain, config, shards, times)
    iterations: list[dict[str, Stage]] = []
    for number, one in enumerate(settings, start=1):
        iterations.append(loop.run(number, one, iterations[-1] if iterations else None))
    result = chain.run("result", {}, [iterations[-1]["export"]], lambda folder: _publish(iterations[-1]["export"], directory))
    figures = [stage for stages in iterations for name, stage in stages.items() if name in ("train", "masked", "probe")]
    chain.run("report", {}, figures, lambda folder: _report(iterations, directory, config["name"]))
    return iterations, result


def _made(config: dict[str, Any], settings: list[IterationSettings], directory: Path) -> dict[str, Any]:
    began = time.monotonic()
    chain = Chain(directory / "stages")
    _, result = _all_stages(chain, config, settings, directory)
    for leftover in directory.glob("*.tmp"):  # of a call that was killed while it wrote the page
        leftover.unlink()
    page = directory / "report.html"
    kept = json.loads((directory / "summary.json").read_text()) if (directory / "summary.json").is_file() else {}
    summary = {
        **kept,
        "format_version": 1,
        "export": result.result,
        "report": str(page.name),
        "seconds": {str(stage.folder.relative_to(directory)): stage.seconds for stage in chain.stages},
        "this_call": {
            "made": [str(stage.folder.relative_to(directory)) for stage in chain.stages if stage.made],
            "wall_seconds": round(time.monotonic() - began, 1),
        },
    }
    write_json(directory / "summary.json", summary)
    return summary


def _publish(exported: Stage, directory: Path) -> dict[str, Any]:
    """Copies the last model to `export/` and loads it with Transformers where that is installed."""
    target = directory / "export"
    target.mkdir(parents=True, exist_ok=True)
    for path in exported.folder.iterdir():
        if path.name != MARK:
            shutil.copyfile(path, target / path.name)
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        return {"transformers": None}
    _, loading = transformers.WavLMModel.from_pretrained(target, output_loading_info=True)
    transformers.Wav2Vec2FeatureExtractor.from_pretrained(target)
    wrong = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise ValueError(f"Transformers does not load {target} as it is: {', '.join(map(str, wrong))}")
    return {"transformers": transformers.__version__}


def _report(iterations: list[dict[str, Stage]], directory: Path, name: str) -> dict[str, Any]:
    parts = []
    for number, stages in enumerate(iterations, start=1):
        probes = stages["probe"].result if "probe" in stages else None
        trained = stages["train"]
        layer = stages["codebook"].result["layer"]
        title = f"iteration {number}: labels from {'MFCC' if layer is None else f'layer {layer}'}"
        part = gather(trained.folder / "run", title, probes=probes, masked=stages["masked"].result)
        part.wall_seconds = trained.seconds
        parts.append(part)
    export = directory / "export"
    commands = [
        ("features of a folder of recordings", f"openwavlm extract encoder={export} input=FOLDER output=FEATURES"),
        ("the model in Python", f"transformers.WavLMModel.from_pretrained({str(export)!r})"),
        (
            "the same on your own recordings",
            "openwavlm iterate name=mine corpora.train.input=DIR corpora.dev.input=DIR corpora.test.input=DIR",
        ),
    ]
    write_report(directory, ReportContent(f"OpenWavLM: {name}", parts, commands=commands))
    return {}


@command("iterate")
def main(config: DictConfig) -> None:
    """The command `openwavlm iterate`."""
    values = plain(config)
    directory = Path("runs") / values["name"]
    summary = iterate(values, directory.resolve())
    if values["dry_run"]:
        log.info("%s", "\n".join(graph_lines(summary["stages"])))
        return
    for number, figures in enumerate(summary["iterations"], start=1):
        masked = figures["masked"]
        log.info(
            "iteration %d: masked cross-entropy %.3f (count table %.3f, unigram %.3f)",
            number,
            masked["cross_entropy"],
            masked["count_table"]["cross_entropy"],
            masked["unigram"]["cross_entropy"],
        )
    log.info("report: %s, figures: %s, model: %s", *(directory / name for name in ("report.html", "summary.json", "export")))
