"""The Markdown page of `mixing`: outcomes, their reading by the rules fixed before, and every table."""

from typing import Any

import numpy as np

from openwavlm.evaluation.features import SPECTRA
from openwavlm.evaluation.paired import Difference
from tables import ABSENT, Figure, seeds, sentence, table

FIGURES = {
    "overlapped_nats": Figure("label cross-entropy in overlapped unmasked frames (nats)", higher_is_better=False, places=3),
    "overlapped_accuracy": Figure("label accuracy in the same frames (share)", higher_is_better=True, places=4),
    "masked_mixed": Figure("masked cross-entropy on mixed audio (nats)", higher_is_better=False, places=3),
    "overlap_normalised": Figure("overlap detection, gain normalised (average precision)", higher_is_better=True, places=4),
    "target": Figure("first speaker audible under a second one (average precision)", higher_is_better=True, places=4),
    "overlapped_phones": Figure("phones in overlapped frames (share)", higher_is_better=True, places=4),
    "clean_phones": Figure("phones of unmixed speech (share)", higher_is_better=True, places=4),
}
UNTRAINED = "untrained"
_BASELINES = {name: f"{title} ± 5" for name, title in SPECTRA.items()} | {UNTRAINED: "untrained encoder"}
_NAMES = {"mixing_off": "mixing off", "p20": "mixing p .2 (share ≤ .5)", "p80": "mixing p .8 (share ≤ 1)"}


def page(summary: dict[str, Any], compared: dict[str, dict[str, Difference]]) -> str:
    """Renders the page.

    Args:
        summary: `summary.json` of `mixing`.
        compared: Comparison → figure → difference.
    """
    primary = summary["primary"]
    title = FIGURES[primary["figure"]].title
    lines = [
        "# Does utterance mixing help under a second speaker?",
        "",
        _origin(summary.get("changed") or []),
        "",
        f"**Primary outcome** ({title}, {summary['mixtures']['energy_ratio_db']:g} dB, test speakers):",
        "",
    ]
    for name in primary["comparisons"]:
        lines += [f"- {_sentence(summary, compared, name, primary['figure'])} **{reading(compared[name])}**"]
    lines += ["", "## How to read it", "", *(f"- {text}" for text in summary["interpretation"])]
    lines += ["", f"{summary['frames']} {summary['head']}", "", *_method(summary, compared)]
    lines += ["", "## All models", "", *_all_models(summary)]
    for name, figures in compared.items():
        of, against = (_name(summary["comparisons"][name][side]) for side in ("of", "against"))
        lines += ["", f"## {of} against {against}", "", *table(figures, FIGURES, of, against, visible=True), ""]
        lines += [f"- {_sentence(summary, compared, name, figure)}" for figure in figures]
    return "\n".join([*lines, "", *_cost(summary)]) + "\n"


def _origin(changed: list[str]) -> str:
    if changed:
        return (
            f"Written by `studies/mixing.py` with other settings than those of `studies/mixing.yaml`: `{' '.join(changed)}`. It is not "
            "the study that was fixed there, and names of arms may not fit."
        )
    return (
        "Written by `make study NAME=mixing` from `runs/mixing/summary.json`. Outcomes, arms and reading were fixed in "
        "`studies/mixing.yaml` before the first run."
    )


def reading(figures: dict[str, Difference]) -> str:
    """Reading of the primary outcome beside the accuracy of the same frames, by the rule that was fixed before the run."""
    nats, accuracy = figures["overlapped_nats"].verdict, figures["overlapped_accuracy"]
    if nats == "lower":
        if accuracy.verdict == "higher":
            return "A gain: the labels are predicted more accurately too."
        seen = (
            f" (a difference from {accuracy.interval.visible:.4f} would have been visible)" if accuracy.verdict == "equal" else ""
        )
        return f"Calibration: the accuracy in these frames is {accuracy.verdict}{seen}."
    if nats == "higher":
        return f"A loss; the accuracy in these frames is {accuracy.verdict}."
    return "No difference is visible." if nats == "equal" else "No interval: there is one speaker."


def _name(arm: str) -> str:
    return _NAMES.get(arm, arm)


def _sentence(summary: dict[str, Any], compared: dict[str, dict[str, Difference]], name: str, figure: str) -> str:
    sides = summary["comparisons"][name]
    return sentence(FIGURES[figure], _name(sides["of"]), _name(sides["against"]), compared[name][figure])


def _method(summary: dict[str, Any], compared: dict[str, dict[str, Difference]]) -> list[str]:
    interval = next(found.interval for figures in compared.values() for found in figures.values())
    count, named = len(summary["seeds"]), ", ".join(map(str, summary["seeds"]))
    return [
        f"`nano_mel`, {summary['updates']} updates, {count} seeds ({named}). A seed decides initialisation, "
        "plan, crops and masks, which its arms share; corpus and MFCC labels are the same for all. Layers and penalties of probes were "
        f"chosen on development speakers. Intervals: 95 %, over the {interval.clusters} test speakers and {count} seeds, both of which "
        "vary (docs/decisions/0009). *Equal*: the interval contains 0; *visible from*: the smallest true difference that would be found "
        "with a probability of 80 %.",
    ]


def _all_models(summary: dict[str, Any]) -> list[str]:
    """Means of all arms beside the baselines; detection raw, with the gain normalised, and by the frame's energy alone."""
    titles = [
        "nats",
        "accuracy",
        "masked, nats",
        "overlap, raw",
        "overlap, gain normalised",
        "target",
        "phones, mixed",
        "phones, clean",
    ]
    lines = [f"| test speakers, mean (seeds) | {' | '.join(titles)} |", f"|---{'|---' * len(titles)}|"]
    for name, models in summary["arms"].items():
        columns = [
            ("overlapped_nats", [model["overlapped"]["cross_entropy"] for model in models]),
            ("overlapped_accuracy", [model["overlapped"]["accuracy"] for model in models]),
            ("masked_mixed", [model["masked_mixed"]["cross_entropy"] for model in models]),
            ("overlap_normalised", [model["overlap"]["precision"] for model in models]),
            ("overlap_normalised", [model["overlap_normalised"]["precision"] for model in models]),
            ("target", [model["target"]["precision"] for model in models]),
            ("overlapped_phones", [model["phones"] for model in models]),
            ("clean_phones", [model["clean_phones"] for model in models]),
        ]
        lines.append(f"| {_name(name)} | {' | '.join(seeds(FIGURES[figure], values) for figure, values in columns)} |")
    for name, found in summary["baselines"].items():
        cells = [found[kind]["precision"] for kind in ("overlap", "overlap_normalised", "target")]
        cells += [found["phones"], found["clean_phones"]]
        lines.append(_row(_BASELINES[name], [None, None, None, *cells]))
    first = next(iter(summary["arms"].values()))[0]
    unigram, kinds = first["overlapped"]["unigram"], [first[kind] for kind in ("overlap", "overlap_normalised", "target")]
    lines.append(_row("energy of the frame", [None] * 3 + [kind["level"] for kind in kinds] + [None] * 2))
    lines.append(
        _row("chance", [unigram["cross_entropy"], unigram["accuracy"], None, *(kind["share"] for kind in kinds), None, None])
    )
    return lines


def _row(name: str, values: list[float | None]) -> str:
    return f"| {name} | {' | '.join(ABSENT if value is None else f'{value:.4f}' for value in values)} |"


def _cost(summary: dict[str, Any]) -> list[str]:
    models = [model for of in summary["arms"].values() for model in of]
    train = np.array([model["train_seconds"] for model in models])
    probe = sum(model["probe_seconds"] for model in models)
    return [
        f"Cost: {len(models)} trainings of {train.min():.0f} to {train.max():.0f} s, {train.sum() / 60:.0f} minutes in all if one after "
        f"the other; probes {probe / 60:.0f} minutes."
    ]
