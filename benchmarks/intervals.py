"""Coverage of 95 % intervals over speakers and seeds on simulated paired differences: `python benchmarks/intervals.py`.

Compares the two-way jackknife of `evaluation.intervals` with percentiles of a bootstrap, over speakers alone (seeds averaged) and over
speakers and seeds, on the same data; and on mixtures the jackknife that leaves a speaker out in both roles with one over the first
speakers alone. Prints two Markdown tables.
"""

import numpy as np

from openwavlm.evaluation.intervals import by_cluster, interval, ratio_interval
from openwavlm.evaluation.mix_sets import Mixtures, share_of
from openwavlm.evaluation.sets import ProbeSet, ProbeUtterance

TRIALS = 4000
DRAWS = 1000
TRUE = 0.05
DESIGNS = ((6, 3), (12, 1), (12, 3), (12, 5), (20, 3), (40, 3))
# Standard deviations of the difference over speakers, over seeds and of their interaction.
EFFECTS = {"speakers": (0.03, 0.0, 0.0), "seeds": (0.001, 0.02, 0.0), "both": (0.03, 0.01, 0.0), "interaction": (0.0, 0.0, 0.03)}


def simulated(rng: np.random.Generator, speakers: int, seeds: int, effect: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums (seeds, speakers) of a difference of `TRUE`, and frames (speakers,): 300 to 3,000."""
    of_speaker, of_seed, of_both = EFFECTS[effect]
    frames = rng.uniform(300, 3000, speakers)
    gains = TRUE + of_speaker * rng.standard_normal(speakers) + of_seed * rng.standard_normal((seeds, 1))
    gains += of_both * rng.standard_normal((seeds, speakers)) + 0.3 * rng.standard_normal((seeds, speakers)) / np.sqrt(frames)
    return gains * frames, frames


def percentiles(rng: np.random.Generator, sums: np.ndarray, frames: np.ndarray, *, seeds_too: bool) -> tuple[float, float]:
    """Percentile interval of drawn speakers and, if `seeds_too`, drawn seeds."""
    seeds, speakers = sums.shape
    of_speaker = rng.multinomial(speakers, np.full(speakers, 1 / speakers), DRAWS)
    of_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), DRAWS) if seeds_too else np.ones((DRAWS, seeds))
    drawn = ((of_seed @ sums) * of_speaker).sum(axis=1) / seeds / (of_speaker @ frames)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def covered(speakers: int, seeds: int, effect: str) -> list[float]:
    """Shares of trials in which each interval contains the true difference."""
    rng = np.random.default_rng(0)
    hits = np.zeros(3)
    for _ in range(TRIALS):
        sums, frames = simulated(rng, speakers, seeds, effect)
        found = ratio_interval(sums, frames)
        ends = [(found.low, found.high), *(percentiles(rng, sums, frames, seeds_too=both) for both in (False, True))]
        hits += [low <= TRUE <= high for low, high in ends]
    return list(hits / TRIALS)


def covered_in_mixtures(of_partner: float, seeds: int) -> list[float]:
    """The same of mixtures of 12 speakers, 15 an utterance's speaker: both roles left out, and the first speakers' sums alone.

    Args:
        of_partner: Standard deviation of the difference over second speakers; over first ones it is .03.
    """
    rng, hits = np.random.default_rng(0), np.zeros(2)
    names, first, frames = [f"s{number:02d}" for number in range(12)], np.repeat(np.arange(12), 15), np.full(180, 50.0)
    silence, nowhere = np.zeros(400, dtype=np.int16), (np.zeros(1, dtype=bool),) * 180
    utterances = tuple(ProbeUtterance(silence, np.zeros(1, dtype=np.int64), names[one]) for one in first)
    for _ in range(TRIALS):
        second = (first + rng.integers(1, 12, 180)) % 12
        made = Mixtures(ProbeSet(utterances, ("x",)), nowhere, nowhere, tuple(names[one] for one in second))
        of_pair = TRUE + (0.03 * rng.standard_normal(12))[first] + (of_partner * rng.standard_normal(12))[second]
        gains = of_pair + 0.01 * (seeds > 1) * rng.standard_normal((seeds, 1)) + 0.03 * rng.standard_normal((seeds, 180))
        pseudo = [made.pseudo_values(share=share_of(of_seed * frames, frames))["share"] for of_seed in gains]
        clusters = [names[one] for one in first]
        both = interval(np.array(pseudo), float(gains.mean()))
        alone = ratio_interval(by_cluster(gains * frames, clusters), by_cluster(frames, clusters))
        hits += [found.low <= TRUE <= found.high for found in (both, alone)]
    return list(hits / TRIALS)


def main() -> None:
    """Prints one row a design."""
    print("| mixtures of 12 speakers: deviation over second ones × seeds | both roles left out | first role alone |")
    print("|---|---|---|")
    for of_partner in (0.0, 0.015, 0.03):
        for seeds in (1, 5):
            cells = [f"{100 * share:.1f}" for share in covered_in_mixtures(of_partner, seeds)]
            print(f"| {of_partner:g} × {seeds} | {' | '.join(cells)} |", flush=True)
    print()
    print("| speakers × seeds | what varies | jackknife, Student | bootstrap over speakers | bootstrap over both |")
    print("|---|---|---|---|---|")
    for speakers, seeds in DESIGNS:
        for effect in EFFECTS if seeds > 1 else ("speakers",):
            cells = [f"{100 * share:.1f}" for share in covered(speakers, seeds, effect)]
            print(f"| {speakers} × {seeds} | {effect} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
