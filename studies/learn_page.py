"""The Markdown page of `learn`: every table, and its verdicts in words."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from openwavlm.evaluation.intervals import Interval, sign_places
from openwavlm.evaluation.paired import Difference

_ABSENT = "–"


class Figure(NamedTuple):
    """A figure that can be compared, its title in tables and the decimal places of its values."""

    title: str
    higher_is_better: bool
    places: int


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
        "## `make learn`: paired comparisons",
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
        lines += ["", f"### {of} against {against}", "", *table(figures, of, against), ""]
        lines += [f"- {_sentence(comparisons, compared, name, figure)}" for figure in figures]
        if "iteration_2" in (comparisons[name]["of"], comparisons[name]["against"]):
            lines.append("- Masked figures are not compared: the two iterations predict other labels.")
    lines += ["", *_cost(summary)]
    return "\n".join(lines) + "\n"


def _name(arm: str) -> str:
    return arm.replace("_", " ") if arm != "nano_mel" else arm


def _sentence(comparisons: dict[str, Any], compared: dict[str, dict[str, Difference]], name: str, figure: str) -> str:
    sides = comparisons[name]
    return sentence(figure, _name(sides["of"]), _name(sides["against"]), compared[name][figure])


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
    for title, name, kind, layer in (
        ("MFCC, one frame", "mfcc", "mfcc", 0),
        ("MFCC ± 5", "mfcc_context", "mfcc", 1),
        ("log-mel, one frame", "logmel", "logmel", 0),
        ("log-mel ± 5", "logmel_context", "logmel", 1),
    ):
        overlapped = f"{mixtures[kind][layer]:.4f}" if kind in mixtures else _ABSENT
        lines.append(f"| {title} | {_ABSENT} | {_ABSENT} | {phones[name]:.4f} | {_ABSENT} | {overlapped} |")
    lines.append(f"| commonest phone | {_ABSENT} | {_ABSENT} | {phones['majority']:.4f} | {_ABSENT} | {_ABSENT} |")
    return lines


def _mean(figure: str, values: list[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return _ABSENT
    # The baselines of one set of labels are the same for all seeds.
    return seeds(figure, known if len(set(known)) > 1 else known[:1]) if len(known) > 1 else f"{known[0]:.4f}"


def _cost(summary: dict[str, Any]) -> list[str]:
    models = [model for of in summary["arms"].values() for model in of]
    train = np.array([model["train_seconds"] for model in models])
    probe = sum(model["probe_seconds"] for model in models)
    return [
        f"Cost: {len(models)} trainings of {train.min():.0f} to {train.max():.0f} s, {train.sum() / 60:.0f} minutes in all if one after "
        f"the other; probes {probe / 60:.0f} minutes."
    ]


def sentence(figure: str, of: str, against: str, found: Difference) -> str:
    """The verdict in words."""
    title, higher_is_better, _ = FIGURES[figure]
    name, interval = title.split(" (", 1)[0], found.interval
    places = sign_places(interval.low, interval.high, FIGURES[figure].places)
    between = f"95 % interval {_ends(figure, interval)} over {interval.clusters} speakers and {interval.seeds} seeds"
    if found.verdict == "unknown":
        words = f"{of} less {against} is {interval.value:+.{places}f}; no interval, as there is one speaker."
    elif found.verdict == "equal":
        words = (
            f"{of} and {against} are equal: the difference of {interval.value:+.{places}f} is within chance ({between}); "
            f"smallest visible difference {interval.visible:.{places}f}."
        )
    else:
        worth = "better" if (found.verdict == "higher") == higher_is_better else "worse"
        words = f"{of} is {found.verdict}, which is {worth}, than {against} by {abs(interval.value):.{places}f} ({between})."
    if len(found.differences) > 1 and not found.seeds_agree:
        words += " The seeds do not agree on its sign."
    return f"{name[0].upper()}{name[1:]}: {words}"


def table(figures: dict[str, Difference], of: str, against: str) -> list[str]:
    """Lines of a Markdown table with a row for each figure."""
    lines = [
        f"| figure | {of}: mean (seeds) | {against}: mean (seeds) | difference (seeds) | 95 % interval | verdict |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in figures.items():
        equal = f"equal (visible from {found.interval.visible:.{FIGURES[name].places}f})"
        cells = [
            FIGURES[name].title,
            seeds(name, found.of),
            seeds(name, found.against),
            seeds(name, found.differences, signed=True),
            _ends(name, found.interval),
            equal if found.verdict == "equal" else found.verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ends(figure: str, interval: Interval) -> str:
    """Both ends, with as many places as the verdict needs."""
    places = sign_places(interval.low, interval.high, FIGURES[figure].places)
    return f"{interval.low:+.{places}f} to {interval.high:+.{places}f}"


def seeds(figure: str, values: Sequence[float], *, signed: bool = False) -> str:
    """`mean (value, value, …)`."""
    form = f"{'+' if signed else ''}.{FIGURES[figure].places}f"
    return f"{np.mean(values):{form}} ({', '.join(f'{value:{form}}' for value in values)})"
