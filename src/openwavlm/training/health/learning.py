"""Rules on learning: the masked loss, the first accuracies and the spread of the predictions."""

import math

import numpy as np

from openwavlm.labels.quality import perplexity
from openwavlm.training.health.judgement import Judgement, Known
from openwavlm.training.health.window import Window

_FRAMES_ALIKE = 10  # neighbouring frames, which share a label and a span, counted as one independent frame


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
        f"the masked loss is {loss:.3f} nats, not below the {limit:.3f} of guessing by label frequency, so nothing was learnt from the "
        "audio: check that labels and audio belong together (openwavlm verify), then the learning rate",
    )


def count_table(window: Window, known: Known) -> Judgement | None:
    """The masked loss is below that of guessing from the nearest unmasked labels."""
    loss, reference = _loss(window), known.references.count_table
    if loss is None or reference is None or _last(window) < known.settings.counted(known.updates):
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


def unmasked_accuracy(window: Window, known: Known) -> Judgement | None:
    """At first, accuracy on unmasked frames is not below that on masked ones."""
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
        f"the accuracy on unmasked frames ({unmasked:.3f}) is below that on masked ones ({masked:.3f}) at the start of a run from random "
        "weights, as after a wrong initialisation: check that linear maps start as N(0, 0.02²)",
    )


def predicted_perplexity(window: Window, known: Known) -> Judgement | None:
    """Predictions, averaged over masked frames, spread over about as many labels as the labels do."""
    labels = known.references.perplexity
    if labels is None or not sum(window.marginal) or _last(window) < known.settings.settled(known.updates):
        return None
    predicted, limit = perplexity(np.array(window.marginal)), known.settings.perplexity_share * labels
    return Judgement(
        predicted,
        limit,
        predicted < limit,
        f"predictions have collapsed onto {predicted:.1f} labels on average, where the labels have a perplexity of {labels:.1f}: check "
        "label embeddings, learning rate and loss scale",
    )
