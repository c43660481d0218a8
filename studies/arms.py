"""Common stages of all studies: models of one seed that differ in one thing, trained in parallel, measured one after the other.

Corpus and MFCC labels are the same for all seeds; a seed decides initialisation, plan, crops, masks and mixtures, which its arms share.
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.evaluation.features import EncoderFeatures, Features, spectral_baselines
from openwavlm.evaluation.mixtures import VERSION, probe_mixtures
from openwavlm.evaluation.paired import Difference, Pseudo, Sums, difference, pseudo_difference
from openwavlm.pipeline.corpora import SETS, shard_sets
from openwavlm.pipeline.iteration import Iteration
from openwavlm.pipeline.settings import IterationSettings, iteration_settings
from openwavlm.pipeline.stages import Chain, Stage, fingerprint
from openwavlm.runs.compose import plain
from openwavlm.runs.export import load_run
from openwavlm.runs.names import run_folder
from openwavlm.runtime.atomic import atomic_file, write_json
from openwavlm.runtime.interrupt import ending_with_reader

log = logging.getLogger(__name__)

Labels = dict[str, Stage]


class Seed(Iteration):
    """Stages of one seed that studies have in common.

    Args:
        chain: Runs the stages.
        config: The whole config as plain values.
        shards: Name → stage of the shard set.
        times: Table of phone times.
        seed: The seed.
        one: Lock for computations in this process, which run one at a time; trainings run in processes of their own.
    """

    def __init__(
        self, chain: Chain, config: dict[str, Any], shards: dict[str, Stage], times: Path, *, seed: int, one: threading.Lock
    ) -> None:
        # One worker: processes must not be forked beside other threads.
        super().__init__(chain, {**config, "seed": seed, "workers": 1}, shards, times)
        self.one = one

    def first_labels(self) -> Labels:
        """Labels from MFCC."""
        settings = iteration_settings(1, self.config["iterations"][0])
        book = self._codebook(1, settings, None)
        return {name: self._labels(1, name, book, settings, None) for name in SETS}

    def changed(self, overrides: list[str]) -> IterationSettings:
        """Settings of iteration 1 with these overrides after its own."""
        settings = iteration_settings(1, self.config["iterations"][0])
        return replace(settings, overrides=(*settings.overrides, *overrides))

    def probe_settings(self) -> dict[str, Any]:
        """Settings of a stage of probes: those of the config, and the content of a table of phone times that was given."""
        times = self.config.get("alignments")
        return {"probe": self.config["probe"]} | ({"alignments": fingerprint(self.times)} if times and self.times else {})

    def probe_clean(self, name: str, inputs: list[Stage], features: Callable[[], Features]) -> Stage:
        """Result of `probe_mixtures` on the clean sets."""
        settings = {"mixtures": self.config["mixtures"], **self.probe_settings(), "version": VERSION}
        clean = [self.shards[f"{part}_clean"] for part in SETS]
        return self.chain.run(
            name,
            settings,
            [*inputs, *clean],
            lambda folder: probe_mixtures(features(), *self._clean_sets(), **self.config["mixtures"]),
        )

    def probe_model(self, name: str, trained: Stage) -> Stage:
        """`probe_clean` of a trained model."""
        return self.probe_clean(name, [trained], lambda: EncoderFeatures(encoder(trained)))

    def mixture_baselines(self) -> dict[str, Stage]:
        """The spectral baselines on the same mixtures; layer 0 is one frame, layer 1 the frame and five to each side."""
        return {
            name: self.probe_clean(f"mixtures-{name}", [], lambda features=features: features)  # type: ignore[misc]
            for name, features in spectral_baselines().items()
        }


def encoder(trained: Stage) -> Any:
    """Encoder of a training's run."""
    return load_run(trained.folder / "run")[0].wavlm


def sums(found: dict[str, Any], numerator: str, denominator: str = "frames") -> Sums:
    """A figure of a `by_speaker` entry."""
    return Sums(tuple(found["speakers"]), np.array(found[numerator]), np.array(found[denominator]))


def pseudo(found: dict[str, Any], figure: str) -> Pseudo:
    """A figure of mixtures with its pseudo-values over speakers in both roles, null where a speaker has none."""
    of = found["pseudo_values"]
    values = np.array([np.nan if value is None else value for value in of[figure]], dtype=np.float64)
    return Pseudo(tuple(of["speakers"]), found[figure], values)


def compared(of: list[Sums | Pseudo], against: list[Sums | Pseudo]) -> Difference:
    """Paired difference of a figure of two arms, one entry a seed."""
    sums = [[one for one in side if isinstance(one, Sums)] for side in (of, against)]
    if len(sums[0]) == len(of):
        return difference(*sums)
    return pseudo_difference(*([one for one in side if isinstance(one, Pseudo)] for side in (of, against)))


def prepared(directory: Path, config: dict[str, Any]) -> tuple[Chain, dict[str, Stage], Path]:
    """Chain, shard sets and table of phone times of a study.

    Raises:
        ValueError: If there are no phone times, or a corpus is refused.
    """
    chain = Chain(directory / "stages")
    shards, times = shard_sets(chain, config)
    if times is None:
        raise ValueError("a study compares phones, so it needs phone times: set alignments=TABLE, or synthesis")
    return chain, shards, times


@contextmanager
def pool(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that each wait for a training; after an error or an interrupt no further job begins, running ones keep checkpoints."""
    made = ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield made
    finally:
        made.shutdown(cancel_futures=True)


def this_call(chain: Chain, directory: Path, began: float) -> dict[str, Any]:
    """Stages that this call made, and its seconds since `began` of the monotonic clock."""
    made = [str(stage.folder.relative_to(directory)) for stage in chain.stages if stage.made]
    return {"made": made, "wall_seconds": round(time.monotonic() - began, 1)}


def write_results(directory: Path, summary: dict[str, Any], page: str) -> None:
    """Writes `summary.json` and `evidence.md`."""
    write_json(directory / "summary.json", summary)
    write_page(directory / "evidence.md", page)


def write_page(path: Path, page: str) -> None:
    """Writes a page as one step, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(page.encode())


def changed_settings(words: list[str]) -> list[str]:
    """Overrides of a command line that make another study of it: all but the run's name, places and the number of parallel trainings."""
    settings = [word for word in words if not word.startswith("-")]
    return [word for word in settings if word.split("=", 1)[0] not in ("name", "input", "demo", "parallel", "debug", "dry_run")]


def run_study(
    name: str, study: Callable[[dict[str, Any], Path], dict[str, Any]], outcome: Callable[[dict[str, Any]], Any]
) -> None:
    """The program of a study: its config is `studies/NAME.yaml` with the command line's overrides.

    Args:
        study: Runs it, from the config as plain values and the run directory.
        outcome: Primary outcome of its summary, for the log.
    """
    here = Path(__file__).resolve().parent
    if {"--help", "-h"} & set(sys.argv[1:]):
        with ending_with_reader():
            print((here / f"{name}.yaml").read_text())
        return

    @command("iterate")
    def main(config: DictConfig) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        values = plain(config) | {"changed": changed_settings(sys.argv[1:])}
        if values["changed"] and values.get("page"):
            log.warning(
                "%s is not written, as this is another study than %s.yaml: %s", values["page"], name, ", ".join(values["changed"])
            )
            values["page"] = None
        directory = run_folder(values["name"])
        summary = study(values, directory.resolve())
        log.info("primary outcome: %s", json.dumps(outcome(summary)))
        log.info("page: %s, figures: %s", directory / "evidence.md", directory / "summary.json")

    sys.argv[1:1] = [f"--config-dir={here}", f"--config-name={name}"]
    main()
