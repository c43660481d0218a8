"""Is it trained on what the config says: masks, mixtures, rows."""

import math

from openwavlm.training.health.judgement import Judgement, Known
from openwavlm.training.health.window import Window

_SAME_COUNT_SLACK = 0.2  # same_count cuts every row to its batch's smallest count: .52 instead of .57 at the published setting


def mask_coverage(window: Window, known: Known) -> Judgement | None:
    """As many frames are masked as the config's spans cover on average."""
    made, expected = window.promised.get("mask", 0.0), window.promised.get("expected_mask", 0.0)
    if not expected and not made:
        return None
    relative = made / max(expected, 1.0)
    rows = max(1.0, window.sums["rows"] - window.sums["unreadable"])
    # Of the rows' errors around their own mean: an error that all rows share is no chance.
    variance = max(0.0, window.promised["mask_variance"] - (made - expected) ** 2 / rows)
    chance = known.settings.chance * math.sqrt(variance) / max(expected, 1.0)
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
