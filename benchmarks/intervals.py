"""Coverage of 95 % intervals over speakers and seeds on simulated paired differences: `python benchmarks/intervals.py`.

Compares the two-way jackknife of `evaluation.intervals` with percentiles of a bootstrap, over speakers alone (seeds averaged) and over
speakers and seeds, on the same data. Prints a Markdown table.
"""

import numpy as np

from openwavlm.evaluation.intervals import ratio_interval

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


def main() -> None:
    """Prints one row a design."""
    print("| speakers × seeds | what varies | jackknife, Student | bootstrap over speakers | bootstrap over both |")
    print("|---|---|---|---|---|")
    for speakers, seeds in DESIGNS:
        for effect in EFFECTS if seeds > 1 else ("speakers",):
            cells = [f"{100 * share:.1f}" for share in covered(speakers, seeds, effect)]
            print(f"| {speakers} × {seeds} | {effect} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
