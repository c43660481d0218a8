"""The health rules: each judges a window of updates (docs/training.md)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from openwavlm.labels.quality import perplexity
from openwavlm.training.health.judgement import Judgement, Known, Lap
from openwavlm.training.health.window import Window

_FRAMES_ALIKE = 10  # neighbouring frames, which share a label and a span, counted as one independent frame
_LEAST_MEASURES = 3  # LayerDrop alone may drop a layer in each of fewer
_LEAST_HISTORY = 5  # windows that a median over windows needs
_CPU_THROUGHPUT_SHARE = 0.5  # other programs share a CPU's clock and caches without a wait for a core


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: Its name in `health.csv` and `summary.json`.
        title: Property of a sound run.
        judged: Windows in which it is judged.
        judge: The rule itself; None where there is nothing to judge.
        of_machine: Whether it concerns the speed of the machine, and no figure of the run depends on it.
    """

    name: str
    title: str
    judged: str
    judge: Callable[[Window, Known], Judgement | None]
    of_machine: bool = False


def _loss(window: Window) -> float | None:
    return window.sums["cross_entropy"] / window.sums["masked"] if window.sums["masked"] else None


def _unigram(window: Window, known: Known) -> Judgement | None:
    loss, reference = _loss(window), known.references.unigram
    if loss is None or reference is None or window.last < known.settings.settled(known.updates):
        return None
    limit = known.settings.unigram_ratio * reference
    return Judgement(
        loss,
        limit,
        not loss < limit,
        f"the masked loss is {loss:.3f} nats, not below the {limit:.3f} of guessing by label frequency, so nothing was learnt from the "
        "audio: check that labels and audio belong together (openwavlm verify), then the learning rate",
    )


def _count_table(window: Window, known: Known) -> Judgement | None:
    loss, reference = _loss(window), known.references.count_table
    if loss is None or reference is None or window.last < known.settings.counted(known.updates):
        return None
    unigram_loss = known.references.unigram
    if unigram_loss is not None and not loss < known.settings.unigram_ratio * unigram_loss:
        return None  # one cause, one finding: that of `unigram`
    limit = known.settings.count_ratio * reference
    return Judgement(
        loss,
        limit,
        not loss < limit,
        f"the masked loss is {loss:.3f} nats, not below the {limit:.3f} of guessing from the nearest unmasked labels without audio, so "
        "the encoder uses little context: train longer, or check learning rate and labels",
    )


def _unmasked_accuracy(window: Window, known: Known) -> Judgement | None:
    seen, settings = window.seen, known.settings
    if not known.from_random or not seen.get("unmasked") or not seen["masked"] or window.last > settings.early(known.updates):
        return None
    masked, unmasked = seen["correct"] / seen["masked"], seen["unmasked_correct"] / seen["unmasked"]
    share = (seen["correct"] + seen["unmasked_correct"]) / (seen["masked"] + seen["unmasked"])
    spread = math.sqrt(share * (1 - share) * _FRAMES_ALIKE * (1 / seen["masked"] + 1 / seen["unmasked"]))
    limit = masked - max(settings.unmasked_margin, settings.chance * spread)
    return Judgement(
        unmasked,
        limit,
        unmasked < limit,
        f"the accuracy on unmasked frames ({unmasked:.3f}) is below that on masked ones ({masked:.3f}) at the start of a run from random "
        "weights, as after a wrong initialisation: check that linear maps start as N(0, 0.02²)",
    )


def _predicted_perplexity(window: Window, known: Known) -> Judgement | None:
    labels = known.references.perplexity
    if labels is None or not sum(window.marginal) or window.last < known.settings.settled(known.updates):
        return None
    predicted, limit = perplexity(np.array(window.marginal)), known.settings.perplexity_share * labels
    return Judgement(
        predicted,
        limit,
        predicted < limit,
        f"predictions have collapsed onto {predicted:.1f} labels on average, where the labels have a perplexity of {labels:.1f}: check "
        "label embeddings, learning rate and loss scale",
    )


def median(norms: list[float]) -> float | None:
    """Median of the finite norms, None if there is none."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return float(np.median(finite)) if finite else None


def _gradient_flow(window: Window, known: Known) -> Judgement | None:
    held = window.first <= known.held_until
    measured = {
        block: norms
        for block, norms in window.gradients.items()
        if len(norms) >= _LEAST_MEASURES and (block == "head" or not held)
    }
    if not measured:
        return None
    dead = [block for block, norms in measured.items() if not any(norm > 0 and math.isfinite(norm) for norm in norms)]
    return Judgement(
        float(len(dead)),
        0.0,
        bool(dead),
        f"the gradient of {', '.join(dead)} was 0 or not finite in every measured update, so nothing is trained there: look for a "
        "detached or overflowing part",
    )


def _gradient_growth(window: Window, known: Known) -> Judgement | None:
    worst, where = 0.0, ""
    for block, norms in window.gradients.items():
        before, now = known.gradients.get(block, []), median(norms)
        if len(before) >= _LEAST_HISTORY and now is not None:
            usual = float(np.median(before))
            worst, where = max((worst, where), (now / usual if usual else 0.0, block))  # 0 is for `gradient_flow`
    if not where:
        return None
    limit = known.settings.gradient_growth
    return Judgement(
        worst,
        limit,
        worst > limit,
        f"the gradient of {where} is {worst:.1f} times its usual norm: the run may be about to diverge; lower the learning rate or go "
        "back to an earlier checkpoint",
    )


def _dead_channels(window: Window, known: Known) -> Judgement | None:
    if not len(window.activations):
        return None
    levels = np.array(window.activations)
    share = float(np.mean(levels <= known.settings.dead_level * levels.mean()))
    limit = known.settings.dead_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{100 * share:.1f} % of the extractor's output channels are silent, and their filters have no gradient: lower the learning "
        "rate or loss.feature_penalty",
    )


def _skipped_updates(window: Window, known: Known) -> Judgement | None:
    share, limit = window.skipped / window.updates, known.settings.skipped_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{window.skipped} of {window.updates} updates were skipped because their gradient was not finite: lower the learning rate, or "
        "use precision=32-true",
    )


def _data_wait(window: Window, known: Known) -> Judgement | None:
    if known.lap is None or known.lap.waited is None or known.lap.shared:
        return None
    share, limit = known.lap.waited / max(known.lap.seconds, 1e-9), known.settings.wait_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{100 * share:.0f} % of the time was spent waiting for data: raise loader.workers or loader.prefetch, or put the shards on a "
        "faster disk",
    )


def speed_of(window: Window, lap: Lap) -> float:
    """Seconds of audio per second of wall time."""
    return window.sums["samples"] / 16_000 / max(lap.seconds, 1e-9)


def _throughput(window: Window, known: Known) -> Judgement | None:
    if known.lap is None or known.lap.shared or len(known.speeds) < _LEAST_HISTORY:
        return None
    speed, usual = speed_of(window, known.lap), float(np.median(known.speeds))
    share = known.settings.throughput_share
    limit = (min(share, _CPU_THROUGHPUT_SHARE) if known.on_cpu else share) * usual
    return Judgement(
        speed,
        limit,
        speed < limit,
        f"the speed is {speed:.0f} s of audio a second, the launch's median {usual:.0f}: look for other programs on this machine and for "
        "throttling",
    )


def _unreadable_rows(window: Window, known: Known) -> Judgement | None:
    if not window.sums["rows"]:
        return None
    share, limit = window.sums["unreadable"] / window.sums["rows"], known.settings.unreadable_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{window.sums['unreadable']:.0f} of {window.sums['rows']:.0f} rows could not be read: run openwavlm verify on the shards",
    )


_SETTLED = "from the later of 2 % of the updates and update 2,000"
_ALWAYS = "in every window"
_NOT_SHARED = ", unless other programs take the cores of a CPU run"
RULES = (
    Rule("unigram", "masked loss below guessing by label frequency", _SETTLED, _unigram),
    Rule(
        "count_table",
        "masked loss below guessing from the nearest unmasked labels",
        "from the later of 15 % of the updates and update 2,000",
        _count_table,
    ),
    Rule(
        "unmasked_accuracy",
        "unmasked accuracy not below masked accuracy",
        "in the first 5 % of the updates from random weights",
        _unmasked_accuracy,
    ),
    Rule("perplexity", "predictions spread over the labels", _SETTLED, _predicted_perplexity),
    Rule("gradient_flow", "every block has a finite gradient", "with 3 measurements in a window", _gradient_flow),
    Rule("gradient_growth", "no block's gradient far above its usual norm", "from the sixth window", _gradient_growth),
    Rule("dead_channels", "no silent channels of the extractor", _ALWAYS, _dead_channels),
    Rule("skipped_updates", "few skipped updates", _ALWAYS, _skipped_updates),
    Rule(
        "data_wait",
        "little waiting for the loader",
        f"with loader.workers, from a launch's second window{_NOT_SHARED}",
        _data_wait,
        of_machine=True,
    ),
    Rule(
        "throughput",
        "not slower than before",
        f"from a launch's seventh window{_NOT_SHARED}",
        _throughput,
        of_machine=True,
    ),
    Rule("unreadable_rows", "rows can be read", _ALWAYS, _unreadable_rows),
)


def current_name(rule: str) -> str:
    """Name of a rule in a file of this or an earlier version."""
    return "skipped_updates" if rule == "void_updates" else rule
