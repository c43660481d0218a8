"""Effect of utterance mixing: `python studies/mixing.py` (`make study NAME=mixing`); outcomes and their reading stand in mixing.yaml.

seed ─┬─ mixing_off ─┐    corpus and MFCC labels: one for all seeds; initialisation, plan, crops, masks: one for all arms of a seed
      ├─ p20 ────────┼─► train ─ mixed labels ─ mixtures ─► differences, intervals over speakers and seeds ─► docs/studies/mixing.md
      └─ p80 ────────┘
"""

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import arms
from arms import Labels, compared, pool, prepared, pseudo, run_study, sums, this_call, write_page, write_results
from mixing_page import FIGURES, UNTRAINED, page
from openwavlm.evaluation import mixed_labels
from openwavlm.evaluation.features import EncoderFeatures
from openwavlm.evaluation.mix_sets import mix_set
from openwavlm.evaluation.mixed_labels import labelled_set, mixed_label_figures
from openwavlm.evaluation.paired import Pseudo, Sums
from openwavlm.labels.store import LabelStore
from openwavlm.pipeline.stages import Chain, Stage
from openwavlm.runs.export import load_run
from openwavlm.shards.index import Index
from openwavlm.training.config import RunConfig
from openwavlm.training.run_files import read_config

# Figure of mixtures → stage, entry of its result, and the name that it has there.
_OF_MIXTURES = {
    "overlapped_nats": ("labels", "overlapped", "cross_entropy"),
    "overlapped_accuracy": ("labels", "overlapped", "accuracy"),
    "masked_mixed": ("labels", "masked", "cross_entropy"),
    "overlap_normalised": ("mixtures", "overlap_normalised", "chosen"),
    "target": ("mixtures", "target", "chosen"),
    "overlapped_phones": ("mixtures", "phones", "chosen"),
}

_SIDES = ("of", "against")


@dataclass(frozen=True)
class Arm:
    """Stages of one model of one seed.

    Attributes:
        train: Training.
        labels: `mixed_label_figures`.
        mixtures: `probe_mixtures`.
    """

    train: Stage
    labels: Stage
    mixtures: Stage

    def figure(self, name: str) -> Sums | Pseudo:
        """A figure by test speaker; of mixtures over both of their speakers."""
        if name == "clean_phones":
            return sums(self.mixtures.result[name]["by_speaker"], "correct")
        stage, entry, title = _OF_MIXTURES[name]
        return pseudo(getattr(self, stage).result[entry], title)


class Seed(arms.Seed):
    """All arms of one seed."""

    def arm(self, labels: Labels, overrides: list[str]) -> Arm:
        """Trains with these overrides and measures."""
        trained = self._train(1, self.changed(overrides), labels)
        with self.one:
            predicted = self.chain.run(
                "1/mixed-labels",
                {"mixtures": self.config["mixtures"], "version": mixed_labels.VERSION},
                [trained, labels["test"], labels["train"]],
                lambda folder: self._mixed_labels(trained, labels),
            )
            return Arm(trained, predicted, self.probe_model("1/mixtures", trained))

    def untrained(self, trained: Stage) -> Stage:
        """`probe_mixtures` of an encoder with random weights, of the config of a training."""

        def features() -> EncoderFeatures:
            config = RunConfig.of(read_config(trained.folder / "run" / "config.yaml")).model
            return EncoderFeatures.untrained(config, 0, torch.device("cpu"))

        return self.probe_clean("mixtures-untrained", [trained], features)

    def _mixed_labels(self, trained: Stage, labels: Labels) -> dict[str, Any]:
        model, _ = load_run(trained.folder / "run")
        config = RunConfig.of(read_config(trained.folder / "run" / "config.yaml"))
        test = labelled_set(self.shards["test"].folder, labels["test"].folder / "labels")
        training = LabelStore.open(labels["train"].folder / "labels", Index.open(self.shards["train"].folder))
        # Masks of validation: the same for all seeds and arms.
        return mixed_label_figures(
            model,
            mix_set(test, **self.config["mixtures"]),
            config.masking,
            training.label_counts,
            mask_seed=config.data.split_seed,
        )


def mixing(config: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Trains and measures every arm of every seed, as far as not done, and compares them.

    Args:
        config: `studies/mixing.yaml` as plain values.
        directory: Run directory, `runs/NAME`.

    Returns:
        Content of `summary.json`; `evidence.md` beside it is the page, a copy of which is written to `page`.

    Raises:
        ValueError: If a comparison or an outcome names an arm or figure that does not exist, there are no phone times, or a stage
            refuses its input.
    """
    began = time.monotonic()
    _check(config)
    chain, shards, times = prepared(directory, config)
    models, baselines = _all_arms(chain, config, shards, times)
    figures = [config["primary"]["figure"], *config["secondary"]]
    differences = {
        name: {figure: compared(*([arm.figure(figure) for arm in models[asked[side]]] for side in _SIDES)) for figure in figures}
        for name, asked in config["comparisons"].items()
    }
    detection = ("overlap", "overlap_normalised", "target")
    summary = {
        "format_version": 1,
        **{name: config[name] for name in ("seeds", "primary", "secondary", "frames", "head", "interpretation", "mixtures")},
        "updates": config["iterations"][0]["updates"],
        "changed": config.get("changed") or [],
        "comparisons": {
            name: {**config["comparisons"][name], "figures": {figure: one.as_json() for figure, one in found.items()}}
            for name, found in differences.items()
        },
        "arms": {name: [_arm_figures(arm, directory) for arm in of] for name, of in models.items()},
        "baselines": {
            name: {kind: _detection(stage.result[kind], _layer_of(name)) for kind in detection}
            | {kind: _at(stage.result[kind], _layer_of(name)) for kind in ("phones", "clean_phones")}
            for name, stage in baselines.items()
        },
        "this_call": this_call(chain, directory, began),
    }
    text = page(summary, differences)
    write_results(directory, summary, text)
    if config["page"]:
        write_page(Path(__file__).resolve().parents[1] / config["page"], text)
    return summary


def _check(config: dict[str, Any]) -> None:
    for name, asked in config["comparisons"].items():
        for arm in map(asked.get, _SIDES):
            if arm not in config["arms"]:
                raise ValueError(f"comparisons.{name} names the arm {arm}, but there are {', '.join(config['arms'])}")
    primary = config["primary"]
    for figure in (primary["figure"], *config["secondary"]):
        if figure not in FIGURES:
            raise ValueError(f"primary and secondary name the figure {figure}, but there are {', '.join(FIGURES)}")
    for name in primary["comparisons"]:
        if name not in config["comparisons"]:
            raise ValueError(f"primary names the comparison {name}, but there are {', '.join(config['comparisons'])}")
    if "overlapped_accuracy" not in config["secondary"]:
        raise ValueError("secondary must have overlapped_accuracy: without it a gain cannot be told from calibration")


def _all_arms(
    chain: Chain, config: dict[str, Any], shards: dict[str, Stage], times: Path
) -> tuple[dict[str, list[Arm]], dict[str, Stage]]:
    """Arm → one model for each seed, in the seeds' order; and the baselines on mixtures."""
    one = threading.Lock()
    shared = Seed(chain, config, shards, times, seed=config["seed"], one=one)
    labels = shared.first_labels()
    seeds = [Seed(chain, config, shards, times, seed=seed, one=one) for seed in config["seeds"]]
    with pool(config["parallel"]) as jobs:
        # Seed by seed, so that a study that is stopped has whole pairs.
        futures = [{name: jobs.submit(seed.arm, labels, words) for name, words in config["arms"].items()} for seed in seeds]
        with one:
            baselines = shared.mixture_baselines()
        models = {name: [of_seed[name].result() for of_seed in futures] for name in config["arms"]}
    baselines[UNTRAINED] = shared.untrained(next(iter(models.values()))[0].train)
    return models, baselines


def _layer_of(baseline: str) -> int | None:
    """Of the spectra the frame with its context, of the untrained encoder the chosen layer."""
    return None if baseline == UNTRAINED else 1


def _at(found: dict[str, Any], layer: int | None) -> float:
    """A figure of a layer; None takes the one chosen on dev."""
    return float(found["chosen"] if layer is None else found["layers"][layer])


def _detection(found: dict[str, Any], layer: int | None = None) -> dict[str, float]:
    """Precision of a layer beside that of the frame's energy and of chance."""
    return {"precision": _at(found, layer), "level": found["level"], "share": found["share"]}


def _arm_figures(arm: Arm, directory: Path) -> dict[str, Any]:
    """Entry of one model in `summary.json`."""
    labels, mixtures = arm.labels.result, arm.mixtures.result
    return {
        "run": str((arm.train.folder / "run").relative_to(directory)),
        "overlapped": {name: value for name, value in labels["overlapped"].items() if name != "pseudo_values"},
        "masked_mixed": {name: value for name, value in labels["masked"].items() if name != "pseudo_values"},
        **{kind: _detection(mixtures[kind]) for kind in ("overlap", "overlap_normalised", "target")},
        **{kind: mixtures[kind]["chosen"] for kind in ("phones", "clean_phones")},
        "train_seconds": arm.train.seconds,
        "probe_seconds": round(arm.labels.seconds + arm.mixtures.seconds, 1),
    }


def _outcome(summary: dict[str, Any]) -> Any:
    primary = summary["primary"]
    return {name: summary["comparisons"][name]["figures"][primary["figure"]] for name in primary["comparisons"]}


if __name__ == "__main__":
    run_study("mixing", mixing, _outcome)
