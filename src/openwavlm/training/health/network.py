"""Rules on the network: gradients, channels, skipped updates."""

import math

import numpy as np

from openwavlm.training.health.judgement import Judgement, Known
from openwavlm.training.health.window import Window

_LEAST_MEASURES = 3  # LayerDrop alone may drop a layer in each of fewer
_LEAST_HISTORY = 5  # windows that a median over windows needs


def median(norms: list[float]) -> float | None:
    """Median of the finite norms, None if there is none."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return float(np.median(finite)) if finite else None


def gradient_flow(window: Window, known: Known) -> Judgement | None:
    """Every block has a gradient that is finite and not 0."""
    measured = {block: norms for block, norms in window.gradients.items() if len(norms) >= _LEAST_MEASURES}
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


def gradient_growth(window: Window, known: Known) -> Judgement | None:
    """No block's gradient grows far above its usual norm."""
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


def dead_channels(window: Window, known: Known) -> Judgement | None:
    """Few channels of the extractor are silent."""
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


def skipped_updates(window: Window, known: Known) -> Judgement | None:
    """Few updates are skipped."""
    share, limit = window.skipped / window.updates, known.settings.skipped_share
    return Judgement(
        share,
        limit,
        share > limit,
        f"{window.skipped} of {window.updates} updates were skipped because their gradient was not finite: lower the learning rate, or "
        "use precision=32-true",
    )
