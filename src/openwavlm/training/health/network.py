"""Is all of the network alive: gradients, channels, void updates."""

import math

import numpy as np

from openwavlm.training.health.judgement import Judgement, Known
from openwavlm.training.health.window import Window

_LEAST_MEASURES = 3  # fewer gradients in a window tell nothing: LayerDrop alone may have dropped a layer in each
_LEAST_HISTORY = 5  # windows that a median over windows needs


def median(norms: list[float]) -> float | None:
    """Median of the finite norms, None if there is none."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return float(np.median(finite)) if finite else None


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
            worst, where = max((worst, where), (now / usual if usual else 0.0, block))  # one that was 0 is `gradient_flow`'s
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
    share, limit = window.void / window.updates, known.settings.skipped_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{window.void} of {window.updates} updates were void, their gradient not being finite: lower the learning rate, or use "
        "precision=32-true",
    )
