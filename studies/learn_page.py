"""The Markdown page of `learn`: every table, and its verdicts in words."""

from typing import Any

import numpy as np

from openwavlm.evaluation.features import SPECTRA
from openwavlm.evaluation.paired import Difference
from tables import ABSENT, Figure, seeds, sentence, table

FIGURES = {
    "phones": Figure("phones, chosen layer (share of frames)", higher_is_better=True, places=4),
    "overlapped_phones": Figure("phones of the first speaker in overlapped frames (share)", higher_is_better=True, places=4),
    "masked": Figure("masked cross-entropy (nats)", higher_is_better=False, places=3),
}


def page(summary: dict[str, Any], compared: dict[str, dict[str, Difference]]) -> str:
    """Renders the page.

    Args:
        summary: `summary.json` of `learn`.
        compared: Comparison → figure → difference.
    """
    primary, comparisons = summary["primary"], summary["comparisons"]
    lines = [
        "## `make study NAME=learn`: paired comparisons",
        "",
        *_method(summary, compared),
        "",
        "**Primary outcome, fixed before the run** "
        f"({primary['comparison']}, {FIGURES[primary['figure']].title}): "
        + _sentence(comparisons, compared, primary["comparison"], primary["figure"]),
        "",
        *_all_models(summary),
    ]
    for name, figures in compared.items():
        of, against = (_name(comparisons[name][side]) for side in ("of", "against"))
        lines += ["", f"### {of} against {against}", "", *table(figures, FIGURES, of, against), ""]
        lines += [f"- {_sentence(comparisons, compared, name, figure)}" for figure in figures]
        if "iteration_2" in (comparisons[name]["of"], comparisons[name]["against"]):
            lines.append("- Masked figures are not compared: the two iterations predict other labels.")
    lines += ["", *_cost(summary)]
    return "\n".join(lines) + "\n"


def _name(arm: str) -> str:
    return arm.replace("_", " ") if arm != "nano_mel" else arm


def _sentence(comparisons: dict[str, Any], compared: dict[str, dict[str, Difference]], name: str, figure: str) -> str:
    sides = comparisons[name]
    return sentence(FIGURES[figure], _name(sides["of"]), _name(sides["against"]), compared[name][figure])


def _method(summary: dict[str, Any], compared: dict[str, dict[str, Difference]]) -> list[str]:
    speakers = next(found.interval.clusters for figures in compared.values() for found in figures.values())
    updates = " and ".join(str(count) for count in dict.fromkeys(summary["updates"]))
    return [
        f"{len(summary['seeds'])} seeds ({', '.join(map(str, summary['seeds']))}), {updates} updates each. A seed decides initialisation, "
        "plan, crops, masks and mixtures, and the arms of one seed share them; corpus and MFCC labels are the same for all. All arms but "
        "iteration 2 train on the MFCC labels. Layers were chosen on development speakers; figures are of test speakers. Masked figures "
        "are of unmixed audio, which favours an arm that trained without mixing.",
        f"Intervals: 95 %, over the {speakers} test speakers and {len(summary['seeds'])} seeds, both of which vary "
        "(docs/decisions/0009). *Equal*: the interval contains 0; *visible from*: the smallest true difference that would be found with a "
        "probability of 80 %. Only the primary outcome was fixed before the run; of the other intervals one in twenty misses by chance.",
    ]


def _all_models(summary: dict[str, Any]) -> list[str]:
    """Every arm's means beside baselines without training."""
    lines = [
        "| held-out speakers, mean (seeds) | masked, nats | ... count table | phones | ... untrained | overlapped phones |",
        "|---|---|---|---|---|---|",
    ]
    for name, models in summary["arms"].items():
        cells = [
            _mean("masked", [model["masked"] for model in models]),
            _mean("masked", [model["count_table"] for model in models]),
            _mean("phones", [model["phones"]["chosen"] for model in models]),
            _mean("phones", [model["phones"]["untrained"] for model in models]),
            _mean("overlapped_phones", [model["overlapped_phones"] for model in models]),
        ]
        lines.append(f"| {_name(name)} | {' | '.join(cells)} |")
    phones = next(iter(summary["arms"].values()))[0]["phones"]
    mixtures = summary["mixture_baselines"]
    for kind, title in SPECTRA.items():
        for layer, context in enumerate(("one frame", "± 5")):
            overlapped = f"{mixtures[kind][layer]:.4f}" if kind in mixtures else ABSENT
            value = phones[f"{kind}_context" if layer else kind]
            lines.append(f"| {title}, {context} | {ABSENT} | {ABSENT} | {value:.4f} | {ABSENT} | {overlapped} |")
    lines.append(f"| commonest phone | {ABSENT} | {ABSENT} | {phones['majority']:.4f} | {ABSENT} | {ABSENT} |")
    return lines


def _mean(figure: str, values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ABSENT
    # The baselines of one set of labels are the same for all seeds.
    return seeds(FIGURES[figure], known if len(set(known)) > 1 else known[:1]) if len(known) > 1 else f"{known[0]:.4f}"


def _cost(summary: dict[str, Any]) -> list[str]:
    models = [model for of in summary["arms"].values() for model in of]
    train = np.array([model["train_seconds"] for model in models])
    probe = sum(model["probe_seconds"] for model in models)
    return [
        f"Cost: {len(models)} trainings of {train.min():.0f} to {train.max():.0f} s, {train.sum() / 60:.0f} minutes in all if one after "
        f"the other; probes {probe / 60:.0f} minutes."
    ]
