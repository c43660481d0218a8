"""Paired comparisons find a difference that is there, call chance equal, and refuse what is not paired."""

import dataclasses

import numpy as np
import pytest

from openwavlm.iteration.paired import FIGURES, Difference, Sums, difference, seeds, sentence, table

SPEAKERS = tuple(f"demo/voice{number:02d}" for number in range(20))
FRAMES = np.full(20, 1000.0)


def sums(share: float, seed: int, *, gain: float = 0.0, jitter: float = 0.0) -> Sums:
    """Voices differ widely, and equally for all arms; `jitter` is what an arm adds of its own."""
    voices = np.random.default_rng(0).uniform(-0.1, 0.1, 20)
    own = np.random.default_rng(seed + 1).normal(0, jitter, 20) if jitter else 0.0
    return Sums(SPEAKERS, FRAMES * (share + voices + gain + own), FRAMES)


def test_a_small_gain_on_every_voice_is_found_though_voices_differ_far_more():
    found = difference([sums(0.4, s, gain=0.01) for s in range(3)], [sums(0.4, s) for s in range(3)])
    assert found.value == pytest.approx(0.01) and found.low == pytest.approx(0.01) == found.high
    assert found.verdict == "higher" and found.seeds_agree and found.speakers == 20
    assert found.of[0] - found.against[0] == pytest.approx(found.differences[0]) == pytest.approx(0.01)


def test_what_is_chance_is_equal_and_its_interval_contains_zero():
    of = [sums(0.4, s, jitter=0.02) for s in range(3)]
    found = difference(of, [sums(0.4, s + 10, jitter=0.02) for s in range(3)])
    assert found.low < 0 < found.high and found.verdict == "equal"
    assert difference(of, of).verdict == "equal"


def test_the_value_is_the_mean_over_seeds_and_turns_its_sign_with_the_arms():
    of = [sums(0.4, s, gain=g) for s, g in enumerate((0.02, -0.01, 0.05))]
    against = [sums(0.4, s) for s in range(3)]
    found, turned = difference(of, against), difference(against, of)
    assert found.value == pytest.approx(0.02) == pytest.approx(np.mean(found.differences))
    assert not found.seeds_agree
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))


def test_averaging_seeds_narrows_the_interval():
    def width(count: int) -> float:
        found = difference(
            [sums(0.4, s, jitter=0.02) for s in range(count)], [sums(0.4, s + 50, jitter=0.02) for s in range(count)]
        )
        return found.high - found.low

    assert width(9) < 0.6 * width(1)


def test_unpaired_figures_are_refused():
    one = sums(0.4, 0)
    with pytest.raises(ValueError, match="needs the same seeds on both sides, but has 2 and 1"):
        difference([one, one], [one])
    with pytest.raises(ValueError, match="needs the same seeds on both sides, but has 0 and 0"):
        difference([], [])
    for other in (
        dataclasses.replace(one, denominator=FRAMES + 1),
        dataclasses.replace(one, speakers=tuple(reversed(SPEAKERS))),
    ):
        with pytest.raises(ValueError, match="needs the same frames of the same speakers"):
            difference([one], [other])


def test_words_say_which_way_is_good():
    def found(low: float, value: float, high: float, differences: tuple[float, ...] = (0.1, 0.1)) -> Difference:
        return Difference((0.5, 0.5), (0.4, 0.4), differences, value, low, high, 20)

    higher, lower, equal = found(0.01, 0.1, 0.2), found(-0.2, -0.1, -0.01), found(-0.1, 0.01, 0.1, (0.1, -0.08))
    assert "one is higher, which is better, than two by 0.1000" in sentence("phones", "one", "two", higher)
    assert "one is higher, which is worse, than two by 0.100" in sentence("masked", "one", "two", higher)
    assert "one is lower, which is better, than two" in sentence("masked", "one", "two", lower)
    assert "one and two are equal" in sentence("phones", "one", "two", equal)
    assert sentence("phones", "one", "two", equal).endswith("The seeds do not agree on its sign.")
    assert not sentence("phones", "one", "two", higher).endswith("sign.")
    lines = table({"phones": higher, "masked": lower}, "one", "two")
    assert len({line.count("|") for line in lines}) == 1 and len(lines) == 4
    assert FIGURES["masked"].title in lines[3] and lines[3].endswith("-0.200 to -0.010 | lower |")
    assert seeds("masked", (1.0, 2.0)) == "1.500 (1.000, 2.000)"
