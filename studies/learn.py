"""Paired comparisons of parts of the recipe: `python studies/learn.py name=NAME` (`make study NAME=learn`).

seed ─┬─ iteration_1 (MFCC) ─── export ─ layer labels ─ iteration_2         corpus and MFCC labels: one for all seeds
      └─ iteration_1 again, one thing changed: mixing_off, nano_mel, …      plan, crops, masks, mixtures: one for all arms of a seed
      every arm: train (a process of its own) ─ probe ─ masked ─ mixtures ─► differences, intervals over speakers and seeds
"""

import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import arms
from arms import Labels, compared, pool, prepared, pseudo, run_study, sums, this_call, write_results
from learn_page import FIGURES, page
from openwavlm.evaluation import measure
from openwavlm.evaluation.features import SPECTRA
from openwavlm.evaluation.paired import Pseudo, Sums
from openwavlm.pipeline.corpora import SETS
from openwavlm.pipeline.masked import VERSION as MASKED_VERSION
from openwavlm.pipeline.settings import IterationSettings, iteration_settings
from openwavlm.pipeline.stages import Chain, Stage

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

    def figure(self, name: str) -> Sums | Pseudo:
        """A figure by test speaker; of mixtures over both of their speakers."""
        if name == "masked":
            return sums(self.masked.result["by_speaker"], "nats")
        if name == "phones":
            return sums(self.probe.result["phones"]["by_speaker"], "correct")
        assert self.mixtures is not None
        return pseudo(self.mixtures.result["phones"], "chosen")


class Seed(arms.Seed):
    """All arms of one seed."""

    def first(self, labels: Labels, overrides: list[str], *, mixtures: bool, counted: bool) -> Arm:
        """Iteration 1 with these overrides."""
        return self._arm(1, self.changed(overrides), labels, mixtures=mixtures, counted=counted)

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
                f"{number}/probe",
                self.probe_settings() | {"version": measure.VERSION},
                [trained, *clean],
                lambda folder: self._probe(trained),
            )
            masked = self.chain.run(
                f"{number}/masked-speakers",
                {"counted": counted, "version": MASKED_VERSION},
                [trained, *labels.values()],
                lambda folder: self._masked_speakers(trained, labels["test"], counted=counted),
            )
            mixed = self.probe_model(f"{number}/mixtures", trained) if mixtures else None
        return Arm(trained, probe, masked, mixed)

    def _masked_speakers(self, trained: Stage, test_labels: Stage, *, counted: bool) -> dict[str, Any]:
        figures, sums = self._masked(trained, test_labels, counted=counted)
        by_speaker = {"speakers": sums.speakers, "nats": sums.numerator.tolist(), "frames": sums.denominator.tolist()}
        return {"by_speaker": by_speaker, "figures": figures if counted else None}


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
    chain, shards, times = prepared(directory, config)
    models, baselines = _all_arms(chain, config, shards, times)
    differences = {name: _compared(asked, models) for name, asked in config["comparisons"].items()}
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
            for name, figures in differences.items()
        },
        "arms": {name: [_arm_figures(arm, directory) for arm in of] for name, of in models.items()},
        "mixture_baselines": {name: stage.result["phones"]["layers"] for name, stage in baselines.items()},
        "this_call": this_call(chain, directory, began),
    }
    write_results(directory, summary, page(summary, differences))
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
    with pool(config["parallel"]) as jobs:
        # In an order in which a job waits only for jobs that began before it.
        futures[FIRST] = [jobs.submit(seed.first, labels, [], mixtures=FIRST in mixed, counted=True) for seed in seeds]
        if len(config["iterations"]) > 1:
            pairs = zip(seeds, futures[FIRST], strict=True)
            futures[SECOND] = [jobs.submit(seed.second, first, mixtures=SECOND in mixed) for seed, first in pairs]
        for name, overrides in config["variants"].items():
            futures[name] = [jobs.submit(seed.first, labels, overrides, mixtures=name in mixed, counted=False) for seed in seeds]
        with one:
            baselines = shared.mixture_baselines() if mixed else {}
        return {name: [future.result() for future in of] for name, of in futures.items()}, baselines


def _compared(asked: dict[str, Any], models: dict[str, list[Arm]]) -> dict[str, Any]:
    of, against = models[asked["of"]], models[asked["against"]]
    return {
        figure: compared([arm.figure(figure) for arm in of], [arm.figure(figure) for arm in against])
        for figure in asked["figures"]
    }


def _arm_figures(arm: Arm, directory: Path) -> dict[str, Any]:
    """Entry of one model in `summary.json`; `masked` beside its baselines where they were measured."""
    phones = arm.probe.result["phones"]
    counted = arm.masked.result["figures"] or {}
    names = [*(f"{name}{context}" for name in SPECTRA for context in ("", "_context")), "untrained", "majority"]
    return {
        "run": str((arm.train.folder / "run").relative_to(directory)),
        "masked": round(arm.figure("masked").value, 5),
        "count_table": counted.get("count_table", {}).get("cross_entropy"),
        "unigram": counted.get("unigram", {}).get("cross_entropy"),
        "phones": {"chosen": phones["chosen"], "chosen_layer": phones["chosen_layer"], **{name: phones[name] for name in names}},
        "overlapped_phones": arm.mixtures.result["phones"]["chosen"] if arm.mixtures else None,
        "overlap": _overlap(arm.mixtures.result) if arm.mixtures else None,
        "train_seconds": arm.train.seconds,
        "probe_seconds": round(arm.probe.seconds + arm.masked.seconds + (arm.mixtures.seconds if arm.mixtures else 0), 1),
    }


def _overlap(mixtures: dict[str, Any]) -> dict[str, Any]:
    """Precision of overlap detection, raw and with the gain normalised, each beside that of the frame's energy alone."""
    kinds = {"raw": mixtures["overlap"], "gain_normalised": mixtures["overlap_normalised"]}
    return {name: {key: found[key] for key in ("chosen", "level", "share")} for name, found in kinds.items()}


def _outcome(summary: dict[str, Any]) -> Any:
    primary = summary["primary"]
    return summary["comparisons"][primary["comparison"]]["figures"][primary["figure"]]


if __name__ == "__main__":
    run_study("learn", learn, _outcome)
