"""The rules that tell a run that learns from one that does not: each judges a window of updates (docs/training.md)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from openwavlm.augment.mixing import Mixing
from openwavlm.targets.quality import perplexity
from openwavlm.training.health import Health
from openwavlm.training.health_window import Window

_FRAMES_ALIKE = 10  # neighbouring frames, which share a label and a span, counted as one independent frame
_LEAST_MEASURES = 3  # fewer gradients in a window tell nothing: LayerDrop alone may have dropped a layer in each
_LEAST_HISTORY = 5  # windows that a median over windows needs
_SAME_COUNT_SLACK = 0.2  # same_count cuts every row to its batch's smallest count: .52 instead of .57 at the published setting


@dataclass(frozen=True)
class References:
    """What is known of the labels without audio; None where it was not computed.

    Attributes:
        unigram: Cross-entropy of guessing by label frequency, nats.
        perplexity: exp of the labels' entropy.
        count_table: Cross-entropy of guessing from the nearest unmasked labels, nats.
    """

    unigram: float | None = None
    perplexity: float | None = None
    count_table: float | None = None

    def complete(self, settings: Health, updates: int) -> bool:
        """Whether all is there that a run of `updates` will be held to."""
        labels = updates < settings.settled(updates) or self.unigram is not None
        return labels and (not settings.count_rows or updates < settings.counted(updates) or self.count_table is not None)


@dataclass(frozen=True)
class Lap:
    """Wall time of a window on rank 0, validation and saving left out.

    Attributes:
        seconds: How long it took.
        waited: Seconds of these in which the loader's workers were waited for; None if the process reads by itself.
    """

    seconds: float
    waited: float | None


@dataclass
class Known:
    """What a window is judged by.

    Attributes:
        settings: Thresholds.
        updates: Updates of the whole run.
        from_random: Whether the run began with random weights.
        mixing: What mixtures should be.
        same_count: Whether masks are cut to their batch's smallest count.
        references: What is known of the labels.
        gradients: Median gradient norms of each block in the windows before.
        speeds: Seconds of audio per second in the launch's windows before.
        lap: The window's wall time, None if it was not measured.
    """

    settings: Health
    updates: int
    from_random: bool
    mixing: Mixing
    same_count: bool = False
    references: References = References()
    gradients: dict[str, list[float]] = field(default_factory=dict)
    speeds: list[float] = field(default_factory=list)
    lap: Lap | None = None


@dataclass(frozen=True)
class Judgement:
    """One rule on one window: the figure, its threshold, whether the rule is broken, and what is the matter if it is."""

    value: float
    threshold: float
    broken: bool
    sentence: str


def _last(window: Window) -> int:
    return window.first + window.updates - 1


def _loss(window: Window) -> float | None:
    return window.sums["cross_entropy"] / window.sums["masked"] if window.sums["masked"] else None


def unigram(window: Window, known: Known) -> Judgement | None:
    """The masked loss is below that of guessing by label frequency."""
    loss, reference = _loss(window), known.references.unigram
    if loss is None or reference is None or _last(window) < known.settings.settled(known.updates):
        return None
    limit = known.settings.unigram_ratio * reference
    return Judgement(
        loss,
        limit,
        not loss < limit,
        f"the masked loss is {loss:.3f} nats, not below the {limit:.3f} of guessing by label frequency: nothing was learnt from the "
        "audio; check that labels and audio belong together (data_prep/verify.py), then the learning rate",
    )


def count_table(window: Window, known: Known) -> Judgement | None:
    """The masked loss is below that of guessing from the nearest unmasked labels."""
    loss, reference = _loss(window), known.references.count_table
    if loss is None or reference is None or _last(window) < known.settings.counted(known.updates):
        return None
    limit = known.settings.count_ratio * reference
    return Judgement(
        loss,
        limit,
        not loss < limit,
        f"the masked loss is {loss:.3f} nats, not below the {limit:.3f} of guessing from the nearest unmasked labels, which hears "
        "nothing: the encoder uses its context little; train longer, or check learning rate and labels",
    )


def unmasked_accuracy(window: Window, known: Known) -> Judgement | None:
    """At first, what the model sees it names no worse than what it does not see."""
    seen, settings = window.seen, known.settings
    if not known.from_random or not seen.get("unmasked") or not seen["masked"] or _last(window) > settings.early(known.updates):
        return None
    masked, unmasked = seen["correct"] / seen["masked"], seen["unmasked_correct"] / seen["unmasked"]
    share = (seen["correct"] + seen["unmasked_correct"]) / (seen["masked"] + seen["unmasked"])
    spread = math.sqrt(share * (1 - share) * _FRAMES_ALIKE * (1 / seen["masked"] + 1 / seen["unmasked"]))
    limit = masked - max(settings.unmasked_margin, settings.chance * spread)
    return Judgement(
        unmasked,
        limit,
        unmasked < limit,
        f"unmasked frames are named right less often ({unmasked:.3f}) than masked ones ({masked:.3f}) at the start of a run from "
        "random weights, the mark of a wrong initialisation; check that linear maps start as N(0, 0.02²)",
    )


def predicted_perplexity(window: Window, known: Known) -> Judgement | None:
    """The model's predictions, averaged over masked frames, are spread over the labels about as the labels are."""
    labels = known.references.perplexity
    if labels is None or not sum(window.marginal) or _last(window) < known.settings.settled(known.updates):
        return None
    predicted, limit = perplexity(np.array(window.marginal)), known.settings.perplexity_share * labels
    return Judgement(
        predicted,
        limit,
        predicted < limit,
        f"predictions have collapsed: on average they spread over {predicted:.1f} labels, the labels themselves over {labels:.1f}; "
        "check label embeddings, learning rate and loss scale",
    )


def mask_coverage(window: Window, known: Known) -> Judgement | None:
    """As many frames are masked as the config's spans cover on average."""
    made, expected = window.promised.get("mask", 0.0), window.promised.get("expected_mask", 0.0)
    if not expected and not made:
        return None
    relative = made / expected if expected else math.inf
    chance = known.settings.chance * math.sqrt(window.promised["mask_variance"]) / expected if expected else 0.0
    tolerance = max(known.settings.coverage_tolerance, chance)
    lower = max(tolerance, _SAME_COUNT_SLACK) if known.same_count else tolerance
    limit = 1 + tolerance if relative > 1 else 1 - lower
    return Judgement(
        relative,
        limit,
        not 1 - lower <= relative <= 1 + tolerance,
        f"{made:.0f} frames were masked, {relative:.3f} times what the masking of the config promises for rows of these lengths: the "
        "masks are not those of the config",
    )


def mixed_rows(window: Window, known: Known) -> Judgement | None:
    """As many rows are mixed, with speech and with noise, as the config says."""
    worst = None
    for kind in ("speech", "noise"):
        made, expected, variance = (window.promised.get(name, 0.0) for name in (kind, f"expected_{kind}", f"{kind}_variance"))
        allowed = max(known.settings.mixing_tolerance * expected, known.settings.chance * math.sqrt(variance))
        if not expected and not made:
            continue
        limit = expected + math.copysign(allowed, made - expected)
        sentence = (
            f"{made:.0f} rows were mixed with {kind}, but mixing.prob and mixing.noise_prob promise {expected:.0f}: the mixtures are "
            "not those of the config"
        )
        found = Judgement(made, limit, abs(made - expected) > allowed, sentence)
        if worst is None or (found.broken and not worst.broken):
            worst = found
    return worst


def energy_ratio(window: Window, known: Known) -> Judgement | None:
    """Mixtures are as loud as the config says: every ratio within its range, their mean in its middle."""
    promised, worst = window.promised, None
    for kind, (low, high) in (("speech", known.mixing.speech_db), ("noise", known.mixing.noise_db)):
        count = promised.get(kind, 0.0)
        if not count:
            continue
        mean, middle = promised[f"{kind}_db"] / count, (low + high) / 2
        chance = known.settings.chance * (high - low) / math.sqrt(12 * count)
        allowed = max(known.settings.level_tolerance_db, chance)
        sentence = (
            f"the energy ratio of mixtures with {kind} is {mean:.2f} dB on average, and {promised['wrong_levels']:.0f} mixtures lie out "
            f"of range; the config promises {low:g} … {high:g} dB, {middle:g} on average"
        )
        limit = middle + math.copysign(allowed, mean - middle)
        found = Judgement(mean, limit, abs(mean - middle) > allowed or promised["wrong_levels"] > 0, sentence)
        if worst is None or (found.broken and not worst.broken):
            worst = found
    return worst


def _none(window: Window, name: str, what: str) -> Judgement | None:
    if name not in window.promised:
        return None
    count = window.promised[name]
    return Judgement(count, 0.0, count > 0, f"{count:.0f} {what}")


def overlap(window: Window, known: Known) -> Judgement | None:
    """No overlap is longer than the config allows, or out of one of its two utterances."""
    what = "mixtures overlap for longer than mixing.max_share allows, or beyond one of their two utterances"
    return _none(window, "wrong_overlaps", what)


def partners(window: Window, known: Known) -> Judgement | None:
    """No row is its own partner, and every partner is a row of the batch or one of its noise clips that was read."""
    return _none(window, "wrong_partners", "mixtures take a partner that is the row itself, could not be read, or does not exist")


def row_lengths(window: Window, known: Known) -> Judgement | None:
    """Rows lie on the frame grid and in the config's range, micro-batches within their budget."""
    what = "rows lie off the frame grid, out of batch.min_seconds … max_seconds, or in a micro-batch over batch.micro_seconds"
    return _none(window, "wrong_rows", what)


def gradient_flow(window: Window, known: Known) -> Judgement | None:
    """Every block gets a gradient, and a finite one."""
    measured = {block: norms for block, norms in window.gradients.items() if len(norms) >= _LEAST_MEASURES}
    if not measured:
        return None
    dead = [block for block, norms in measured.items() if not any(norm > 0 and math.isfinite(norm) for norm in norms)]
    return Judgement(
        float(len(dead)),
        0.0,
        bool(dead),
        f"the gradient of {', '.join(dead)} was 0 or not finite in every measured update: nothing there is trained; look for a detached "
        "or overflowing part",
    )


def gradient_growth(window: Window, known: Known) -> Judgement | None:
    """No block's gradient grows far beyond what it was."""
    worst, where = 0.0, ""
    for block, norms in window.gradients.items():
        before, now = known.gradients.get(block, []), median(norms)
        if len(before) >= _LEAST_HISTORY and now is not None:
            usual = float(np.median(before))
            ratio = now / usual if usual else math.inf if now else 0.0
            worst, where = max((worst, where), (ratio, block))
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


def dead_channels(window: Window, known: Known) -> Judgement | None:
    """Hardly a channel of the extractor is silent."""
    if not len(window.activations):
        return None
    levels = np.array(window.activations)
    share = float(np.mean(levels <= known.settings.dead_level * levels.mean()))
    limit = known.settings.dead_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{100 * share:.1f} % of the extractor's output channels are silent: their filters get no gradient any more; lower the learning "
        "rate or loss.feature_penalty",
    )


def void_updates(window: Window, known: Known) -> Judgement | None:
    """Hardly an update is skipped."""
    share, limit = window.void / window.updates, known.settings.void_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{window.void} of {window.updates} updates were void, their gradient not being finite: lower the learning rate, or use "
        "precision=32-true",
    )


def data_wait(window: Window, known: Known) -> Judgement | None:
    """The loader's workers are hardly waited for."""
    if known.lap is None or known.lap.waited is None:
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


def throughput(window: Window, known: Known) -> Judgement | None:
    """The run does not get slower."""
    if known.lap is None or len(known.speeds) < _LEAST_HISTORY:
        return None
    speed, usual = speed_of(window, known.lap), float(np.median(known.speeds))
    limit = known.settings.throughput_share * usual
    return Judgement(
        speed,
        limit,
        speed < limit,
        f"{speed:.0f} s of audio a second, after {usual:.0f} as a rule: is something else running on this machine, or is it throttled?",
    )


def unreadable_rows(window: Window, known: Known) -> Judgement | None:
    """Hardly a row cannot be read."""
    if not window.sums["rows"]:
        return None
    share, limit = window.sums["unreadable"] / window.sums["rows"], known.settings.unreadable_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{window.sums['unreadable']:.0f} of {window.sums['rows']:.0f} rows could not be read: run data_prep/verify.py on the shards",
    )


def median(norms: list[float]) -> float | None:
    """Median of the finite norms, None if there is none."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return float(np.median(finite)) if finite else None


@dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
        name: Its name in `health.csv`.
        title: What holds in a sound run.
        judged: When it is judged.
        judge: The rule itself; None where there is nothing to judge.
    """

    name: str
    title: str
    judged: str
    judge: Callable[[Window, Known], Judgement | None]


_SETTLED = "from the later of 2 % of the updates and update 2,000"
_ALWAYS = "in every window"
RULES = (
    Rule("unigram", "masked loss below guessing by label frequency", _SETTLED, unigram),
    Rule(
        "count_table",
        "masked loss below guessing from the nearest unmasked labels",
        "from the later of 15 % of the updates and update 2,000",
        count_table,
    ),
    Rule(
        "unmasked_accuracy",
        "unmasked accuracy not below masked accuracy",
        "in the first 5 % of the updates from random weights",
        unmasked_accuracy,
    ),
    Rule("perplexity", "predictions spread over the labels", _SETTLED, predicted_perplexity),
    Rule("mask_coverage", "masked frames as the config says, relative", _ALWAYS, mask_coverage),
    Rule("mixed_rows", "number of mixed rows as the config says", "where rows are mixed", mixed_rows),
    Rule("energy_ratio", "energy ratios as the config says, dB", "where rows are mixed", energy_ratio),
    Rule("overlap", "overlaps as short as the config says", _ALWAYS, overlap),
    Rule("partners", "no row its own partner", _ALWAYS, partners),
    Rule("row_lengths", "rows and micro-batches as long as the config says", _ALWAYS, row_lengths),
    Rule("gradient_flow", "every block has a finite gradient", "with 3 measurements in a window", gradient_flow),
    Rule("gradient_growth", "no block's gradient far above its usual norm", "from the sixth window", gradient_growth),
    Rule("dead_channels", "no silent channels of the extractor", _ALWAYS, dead_channels),
    Rule("void_updates", "hardly a void update", _ALWAYS, void_updates),
    Rule("data_wait", "the loader is not waited for", "with loader.workers, from a launch's second window", data_wait),
    Rule("throughput", "not slower than before", "from a launch's seventh window", throughput),
    Rule("unreadable_rows", "rows can be read", _ALWAYS, unreadable_rows),
)
