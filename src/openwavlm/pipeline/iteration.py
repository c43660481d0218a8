"""One pass of the loop over prepared shard sets: codebook, labels, training, export, figures."""

import logging
import os
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from openwavlm.batches.sources import OpenData
from openwavlm.evaluation import measure
from openwavlm.evaluation.features import EncoderFeatures
from openwavlm.evaluation.measure import ProbeSettings
from openwavlm.evaluation.paired import Sums
from openwavlm.evaluation.probe import probe_model
from openwavlm.evaluation.sets import ProbeSet
from openwavlm.evaluation.shard_sets import inventory, probe_set, read_phone_times
from openwavlm.evaluation.units import UnitSettings, choose_layer, layer_pnmi
from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.labels.teacher import forget_teacher, open_teacher
from openwavlm.model.wavlm import WavLM
from openwavlm.pipeline.corpora import SETS
from openwavlm.pipeline.masked import VERSION as MASKED_VERSION
from openwavlm.pipeline.masked import masked_figures
from openwavlm.pipeline.settings import IterationSettings
from openwavlm.pipeline.stages import Chain, Stage, fingerprint
from openwavlm.runs.compose import composed, plain, quoted
from openwavlm.runs.export import export_run, load_run
from openwavlm.runs.run_directory import trajectory
from openwavlm.runtime.processes import PARENT, ended, run_until_saved
from openwavlm.training.config import RunConfig
from openwavlm.training.run_files import read_config, read_summary

log = logging.getLogger(__name__)
Stages = dict[str, Stage]


class Iteration:
    """Stages of one iteration, on the shard sets and the table of phone times that `shard_sets` returns."""

    def __init__(self, chain: Chain, config: dict[str, Any], shards: Stages, times: Path | None) -> None:
        self.chain, self.config, self.shards, self.times = chain, config, shards, times

    def run(self, number: int, settings: IterationSettings, previous: Stages | None) -> Stages:
        """Makes or finds all stages of iteration `number` (from 1)."""
        book = self._codebook(number, settings, previous)
        labels = {name: self._labels(number, name, book, settings, previous) for name in SETS}
        trained = self._train(number, settings, labels, previous)
        exported = self.chain.run(f"{number}/export", {}, [trained], lambda folder: self._export(trained, folder))
        inputs = [trained, *labels.values()]
        masked = self.chain.run(
            f"{number}/masked", {"version": MASKED_VERSION}, inputs, lambda folder: self._masked(trained, labels["test"])[0]
        )
        stages = {"codebook": book, "train": trained, "export": exported, "masked": masked}
        if self.times is not None:
            inputs = [exported, *(self.shards[f"{name}_clean"] for name in SETS)]
            wanted = dict(self.config["probe"]) | {"version": measure.VERSION}
            if self.config["alignments"]:
                wanted["alignments"] = fingerprint(self.times)
            stages["probe"] = self.chain.run(f"{number}/probe", wanted, inputs, lambda folder: self._probe(trained))
        return stages | {f"labels-{name}": stage for name, stage in labels.items()}

    def _codebook(self, number: int, settings: IterationSettings, previous: Stages | None) -> Stage:
        wanted = {"features": settings.features, "clusters": settings.clusters, **settings.codebook, "seed": self.config["seed"]}
        inputs = [self.shards["train"]]
        if settings.teacher is not None:
            wanted |= {"layer": settings.layer, "teacher": open_teacher(settings.teacher).hash}
        elif settings.features == "layer":
            assert previous is not None
            wanted["layer"] = self._layer(number, settings, previous)
            inputs.append(previous["export"])

        def make(folder: Path) -> dict[str, Any]:
            book = fit_codebook(
                [self.shards["train"].folder],
                folder / "codebook",
                validation_share=0.0,
                workers=self.config["workers"],
                device=self.config["device"],
                **(wanted | {"teacher": _teacher(settings, previous)}),
            )
            return {"hash": book.hash, "layer": wanted.get("layer")}

        return self.chain.run(f"{number}/codebook", wanted, inputs, make)

    def _layer(self, number: int, settings: IterationSettings, previous: Stages) -> int | None:
        """The configured layer, else that of `choose_layer`; None while the previous iteration is not done, in a dry run."""
        if settings.layer is not None:
            return settings.layer
        if not all(stage.done for stage in previous.values()):
            return None
        pnmi = dict(enumerate(previous["probe"].result["pnmi_of_layers"], start=1)) if "probe" in previous else None
        return choose_layer(number - 1, int(previous["train"].result["layers"]), pnmi)

    def _labels(self, number: int, name: str, book: Stage, settings: IterationSettings, previous: Stages | None) -> Stage:
        def make(folder: Path) -> None:
            assign_labels(
                self.shards[name].folder,
                book.folder / "codebook",
                folder / "labels",
                teacher=_teacher(settings, previous),
                workers=self.config["workers"],
                device=self.config["device"],
            )

        return self.chain.run(f"{number}/labels-{name}", {}, [book, self.shards[name]], make)

    def _train(self, number: int, settings: IterationSettings, labels: Stages, previous: Stages | None = None) -> Stage:
        chosen, inputs = overrides(self.config, number, settings), list(labels.values())
        # The stage depends on the trajectory, presets resolved; its data are named by the stages that it builds on.
        wanted = trajectory(plain(composed("train", chosen)))
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
            return _trained(number, folder, [*chosen, *data, *_new_head(folder / "run", settings)])

        return self.chain.run(f"{number}/train", wanted, inputs, make)

    def _export(self, trained: Stage, folder: Path) -> None:
        export_run(trained.folder / "run", folder)

    def _masked(self, trained: Stage, test_labels: Stage, *, counted: bool = True) -> tuple[dict[str, Any], Sums]:
        """Result of `masked_figures` on the test set, which the training never opened."""
        values = read_config(trained.folder / "run" / "config.yaml")
        test = {"shards": str(self.shards["test"].folder), "labels": str(test_labels.folder / "labels")}
        values["data"]["validation"]["test"] = test
        config = RunConfig.of(values)
        with closing(OpenData(config.data, config.batch, config.seed)) as opened:
            model, _ = load_run(trained.folder / "run")
            return masked_figures(model, config, opened, train="speech", dev="dev", test="test", counted=counted)

    def _probe(self, trained: Stage) -> dict[str, Any]:
        train, dev, test = (part.readable() for part in self._clean_sets())
        rest = {name: value for name, value in self.config["probe"].items() if name not in ("fold_stress", "train_seconds")}
        settings = ProbeSettings(**rest)
        model, _ = load_run(trained.folder / "run")
        workers, cache = self.config["workers"], self.chain.folder / "baselines"
        figures = probe_model(model.wavlm, train, dev, test, settings, cache=cache, workers=workers)
        return figures | {"pnmi_of_layers": pnmi_by_layer(model.wavlm, train, dev, settings)}

    def _clean_sets(self) -> tuple[ProbeSet, ProbeSet, ProbeSet]:
        """Training, development and test set of the probes."""
        assert self.times is not None
        times = read_phone_times(self.times, fold_stress=self.config["probe"]["fold_stress"])
        phones = inventory(times)
        train, dev, test = (probe_set(self.shards[f"{name}_clean"].folder, times, phones) for name in SETS)
        return train.spread_over_speakers(self.config["probe"]["train_seconds"]), dev, test


def overrides(config: dict[str, Any], number: int, settings: IterationSettings) -> list[str]:
    """Overrides of the training of iteration `number`, without its data."""
    updates = [f"optim.updates={settings.updates}"] if settings.updates else []
    return [f"name=iteration-{number}", *config["overrides"], *settings.overrides, f"seed={config['seed']}", *updates]


def _new_head(run: Path, settings: IterationSettings) -> list[str]:
    """Override for a new head after a warm start, also on an equal codebook; none for a run that an earlier version began without it."""
    known = run / "config.yaml"
    keyless = known.exists() and "init_head" not in read_config(known)
    return [] if settings.start != "warm" or keyless else ["init_head=new"]


def _teacher(settings: IterationSettings, previous: Stages | None) -> Path | None:
    """Folder or file of the model that provides the features."""
    if settings.teacher is not None:
        return Path(settings.teacher)
    return previous["export"].folder if settings.features == "layer" and previous else None


def _trained(number: int, folder: Path, words: list[str]) -> dict[str, Any]:
    """Trains in a process of its own, which resumes an earlier call's run; returns the run's `layers` and costs."""
    program = [sys.executable, "-m", "openwavlm", "train", f"hydra.run.dir={quoted(folder / 'run')}", *words]
    forget_teacher()  # the training needs the GPU's memory
    status = run_until_saved(program, os.environ | {PARENT: str(os.getpid())})
    if status:
        how = ended(status)
        more = ": see above; the same command resumes it" if status > 0 and "the same command" not in how else ""
        raise ValueError(f"training of iteration {number} {how}{more}")
    summary = read_summary(folder / "run" / "summary.json")
    if not summary.get("complete"):
        raise ValueError(
            f"training of iteration {number} was stopped at update {summary.get('updates', 0)}: the same command resumes it"
        )
    config = RunConfig.of(read_config(folder / "run" / "config.yaml"))
    return {"layers": config.model.layers, **summary.get("this_launch", {})}


def pnmi_by_layer(model: WavLM, train: ProbeSet, dev: ProbeSet, settings: ProbeSettings) -> list[float]:
    """Corrected PNMI of the units of layers 1, 2, … on development speakers, with codebooks fitted on training speakers."""
    frames, seeds = settings.codebook_frames, settings.codebook_seeds
    units = UnitSettings(clusters=settings.clusters, codebook_seeds=seeds, fit_frames=frames, quick=True)
    found = layer_pnmi(EncoderFeatures(model), train, dev, units)
    return [round(found[layer], 5) for layer in sorted(found)]
