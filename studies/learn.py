"""Paired comparisons of parts of the recipe: `python studies/learn.py name=NAME` (`make learn`).

seed ─┬─ iteration_1 (MFCC) ─── export ─ layer labels ─ iteration_2         corpus and MFCC labels: one for all seeds
      └─ iteration_1 again, one thing changed: mixing_off, nano_mel, …      plan, crops, masks, mixtures: one for all arms of a seed
      every arm: train (a process of its own) ─ probe ─ masked ─ mixtures ─► differences, intervals over speakers and seeds
"""

import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from learn_page import FIGURES, page
from openwavlm.cli.app import command
from openwavlm.evaluation.features import EncoderFeatures, Features, LogMelFeatures, MfccFeatures
from openwavlm.evaluation.mixtures import probe_mixtures
from openwavlm.evaluation.paired import Sums, difference
from openwavlm.pipeline.corpora import SETS, shard_sets
from openwavlm.pipeline.iteration import Iteration
from openwavlm.pipeline.settings import IterationSettings, iteration_settings
from openwavlm.pipeline.stages import Chain, Stage
from openwavlm.runs.compose import plain
from openwavlm.runs.export import load_run
from openwavlm.runs.names import run_folder
from openwavlm.runtime.atomic import atomic_file, write_json
from openwavlm.runtime.interrupt import ending_with_reader

log = logging.getLogger(__name__)

Labels = dict[str, Stage]
FIRST, SECOND = "iteration_1", "iteration_2"


@dataclass(frozen=True)
class Arm:
    """Stages of one model of one seed.

    Attributes:
        train: Training.
        probe: Phones and units beside their baselines.
        masked: Nats and frames by speaker; of the two iterations also the baselines without audio.
        mixtures: Overlap and phones in mixtures; None where no comparison needs it.
    """

    train: Stage
    probe: Stage
    masked: Stage
    mixtures: Stage | None

    def sums(self, figure: str) -> Sums:
        """A figure by test speaker."""
        if figure == "masked":
            found = self.masked.result["by_speaker"]
            return Sums(tuple(found["speakers"]), np.array(found["nats"]), np.array(found["frames"]))
        stage = self.probe if figure == "phones" else self.mixtures
        assert stage is not None
        found = stage.result["phones"]["by_speaker"]
        return Sums(tuple(found["speakers"]), np.array(found["correct"]), np.array(found["frames"]))


class Seed(Iteration):
    """All arms of one seed.

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

    def first(self, labels: Labels, overrides: list[str], *, mixtures: bool, counted: bool) -> Arm:
        """Iteration 1 with these overrides."""
        settings = iteration_settings(1, self.config["iterations"][0])
        changed = replace(settings, overrides=(*settings.overrides, *overrides))
        return self._arm(1, changed, labels, mixtures=mixtures, counted=counted)

    def second(self, first: "Future[Arm]", *, mixtures: bool) -> Arm:
        """Iteration 2 on labels of a layer of this seed's iteration 1."""
        settings, before = iteration_settings(2, self.config["iterations"][1]), first.result()
        with self.one:
            trained = before.train
            exported = self.chain.run("1/export", {}, [trained], lambda folder: self._export(trained, folder))
            previous = {"train": trained, "probe": before.probe, "export": exported}
            book = self._codebook(2, settings, previous)
            labels = {name: self._labels(2, name, book, settings, previous) for name in SETS}
        return self._arm(2, settings, labels, mixtures=mixtures, counted=True)

    def _arm(self, number: int, settings: IterationSettings, labels: Labels, *, mixtures: bool, counted: bool) -> Arm:
        trained = self._train(number, settings, labels)
        clean = [self.shards[f"{name}_clean"] for name in SETS]
        with self.one:
            probe = self.chain.run(
                f"{number}/probe", dict(self.config["probe"]), [trained, *clean], lambda folder: self._probe(trained)
            )
            masked = self.chain.run(
                f"{number}/masked-speakers",
                {"counted": counted},
                [trained, *labels.values()],
                lambda folder: self._masked_speakers(trained, labels["test"], counted=counted),
            )
            mixed = None
            if mixtures:
                mixed = self._mixtures(f"{number}/mixtures", [trained], lambda: EncoderFeatures(_encoder(trained)))
        return Arm(trained, probe, masked, mixed)

    def _masked_speakers(self, trained: Stage, test_labels: Stage, *, counted: bool) -> dict[str, Any]:
        figures, sums = self._masked(trained, test_labels, counted=counted)
        by_speaker = {"speakers": sums.speakers, "nats": sums.numerator.tolist(), "frames": sums.denominator.tolist()}
        return {"by_speaker": by_speaker, "figures": figures if counted else None}

    def mixture_baselines(self) -> dict[str, Stage]:
        """MFCC and log-mel on the same mixtures; layer 0 is one frame, layer 1 the frame and five to each side."""
        return {
            name: self._mixtures(f"mixtures-{name}", [], features)
            for name, features in (("mfcc", MfccFeatures), ("logmel", LogMelFeatures))
        }

    def _mixtures(self, name: str, inputs: list[Stage], features: Callable[[], Features]) -> Stage:
        settings = {"mixtures": self.config["mixtures"], "probe": self.config["probe"]}
        clean = [self.shards[f"{part}_clean"] for part in SETS]
        return self.chain.run(
            name,
            settings,
            [*inputs, *clean],
            lambda folder: probe_mixtures(features(), *self._clean_sets(), **self.config["mixtures"]),
        )


def _encoder(trained: Stage) -> Any:
    return load_run(trained.folder / "run")[0].wavlm


def learn(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Trains and measures every arm of every seed, as far as not done, and compares them.

    Args:
        config: `studies/learn.yaml` as plain values.
        directory: Run directory, `runs/NAME`.

    Returns:
        Content of `summary.json`; `evidence.md` beside it is the page.

    Raises:
        ValueError: If a comparison names an arm or figure that does not exist, there are no phone times, or a stage refuses its input.
    """
    began = time.monotonic()
    _check(config)
    chain = Chain(directory / "stages")
    shards, times = shard_sets(chain, config)
    if times is None:
        raise ValueError("learn compares phones, so it needs phone times: set alignments=TABLE, or synthesis")
    arms, baselines = _all_arms(chain, config, shards, times)
    compared = {name: _compared(asked, arms) for name, asked in config["comparisons"].items()}
    summary = {
        "format_version": 1,
        "seeds": config["seeds"],
        "updates": [settings["updates"] for settings in config["iterations"]],
        "primary": config["primary"],
        "comparisons": {
            name: {
                "of": config["comparisons"][name]["of"],
                "against": config["comparisons"][name]["against"],
                "figures": {figure: found.as_json() for figure, found in figures.items()},
            }
            for name, figures in compared.items()
        },
        "arms": {name: [_arm_figures(arm, directory) for arm in of] for name, of in arms.items()},
        "mixture_baselines": {name: stage.result["phones"]["layers"] for name, stage in baselines.items()},
        "this_call": {
            "made": [str(stage.folder.relative_to(directory)) for stage in chain.stages if stage.made],
            "wall_seconds": round(time.monotonic() - began, 1),
        },
    }
    write_json(directory / "summary.json", summary)
    with atomic_file(directory / "evidence.md") as file:
        file.write(page(summary, compared).encode())
    return summary


def _check(config: dict[str, Any]) -> None:
    names = [FIRST, *([SECOND] if len(config["iterations"]) > 1 else []), *config["variants"]]
    for name, asked in config["comparisons"].items():
        for arm in (asked["of"], asked["against"]):
            if arm not in names:
                raise ValueError(f"comparisons.{name} names the arm {arm}, but there are {', '.join(names)}")
        for figure in asked["figures"]:
            if figure not in FIGURES:
                raise ValueError(f"comparisons.{name}.figures has {figure}, but there are {', '.join(FIGURES)}")
        if "masked" in asked["figures"] and SECOND in (asked["of"], asked["against"]):
            raise ValueError(
                f"comparisons.{name}.figures has masked, but {SECOND} has other labels than the rest, so that its masked figures "
                "cannot be compared with theirs: remove it"
            )
    primary = config["primary"]
    if primary["figure"] not in config["comparisons"].get(primary["comparison"], {}).get("figures", []):
        raise ValueError(f"primary names {primary['figure']} of {primary['comparison']}, which no comparison has: add it there")


def _all_arms(
    chain: Chain, config: dict[str, Any], shards: dict[str, Stage], times: Path
) -> tuple[dict[str, list[Arm]], dict[str, Stage]]:
    """Arm → one model for each seed, in the seeds' order; and the baselines on mixtures."""
    one = threading.Lock()
    shared = Seed(chain, config, shards, times, seed=config["seed"], one=one)
    labels = shared.first_labels()
    mixed = {
        arm for asked in config["comparisons"].values() if "overlapped_phones" in asked["figures"]
        for arm in (asked["of"], asked["against"])
    }  # fmt: skip
    seeds = [Seed(chain, config, shards, times, seed=seed, one=one) for seed in config["seeds"]]
    futures: dict[str, list[Future[Arm]]] = {}
    pool = ThreadPoolExecutor(config["parallel"], initializer=torch.set_num_threads, initargs=(1,))
    try:
        # In an order in which a job waits only for jobs that began before it.
        futures[FIRST] = [pool.submit(seed.first, labels, [], mixtures=FIRST in mixed, counted=True) for seed in seeds]
        if len(config["iterations"]) > 1:
            pairs = zip(seeds, futures[FIRST], strict=True)
            futures[SECOND] = [pool.submit(seed.second, first, mixtures=SECOND in mixed) for seed, first in pairs]
        for name, overrides in config["variants"].items():
            futures[name] = [pool.submit(seed.first, labels, overrides, mixtures=name in mixed, counted=False) for seed in seeds]
        with one:
            baselines = shared.mixture_baselines() if mixed else {}
        return {name: [future.result() for future in of] for name, of in futures.items()}, baselines
    finally:
        # After an error or an interrupt no further job begins; running trainings keep their checkpoints.
        pool.shutdown(cancel_futures=True)


def _compared(asked: dict[str, Any], arms: dict[str, list[Arm]]) -> dict[str, Any]:
    of, against = arms[asked["of"]], arms[asked["against"]]
    return {
        figure: difference([arm.sums(figure) for arm in of], [arm.sums(figure) for arm in against]) for figure in asked["figures"]
    }


def _arm_figures(arm: Arm, directory: Path) -> dict[str, Any]:
    """Entry of one model in `summary.json`; `masked` beside its baselines where they were measured."""
    phones = arm.probe.result["phones"]
    counted = arm.masked.result["figures"] or {}
    names = ("mfcc", "mfcc_context", "logmel", "logmel_context", "untrained", "majority")
    return {
        "run": str((arm.train.folder / "run").relative_to(directory)),
        "masked": round(arm.sums("masked").value, 5),
        "count_table": counted.get("count_table", {}).get("cross_entropy"),
        "unigram": counted.get("unigram", {}).get("cross_entropy"),
        "phones": {"chosen": phones["chosen"], "chosen_layer": phones["chosen_layer"], **{name: phones[name] for name in names}},
        "overlapped_phones": arm.mixtures.result["phones"]["chosen"] if arm.mixtures else None,
        "overlap": arm.mixtures.result["overlap"]["chosen"] if arm.mixtures else None,
        "train_seconds": arm.train.seconds,
        "probe_seconds": round(arm.probe.seconds + arm.masked.seconds + (arm.mixtures.seconds if arm.mixtures else 0), 1),
    }


@command("iterate")
def main(config: DictConfig) -> None:
    """Runs the study that the config describes."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    values = plain(config)
    directory = run_folder(values["name"])
    summary = learn(values, directory.resolve())
    primary = summary["primary"]
    found = summary["comparisons"][primary["comparison"]]["figures"][primary["figure"]]
    log.info("primary outcome: %s", json.dumps(found))
    log.info("page: %s, figures: %s", directory / "evidence.md", directory / "summary.json")


if __name__ == "__main__":
    here = Path(__file__).resolve().parent
    if {"--help", "-h"} & set(sys.argv[1:]):
        with ending_with_reader():
            print((here / "learn.yaml").read_text())
    else:
        sys.argv[1:1] = [f"--config-dir={here}", "--config-name=learn"]
        main()
