"""Speaker probe: linear discriminants of 2-s means, fitted on some utterances and judged on others of the same speakers."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

FRAMES_A_MEAN = 100  # 2 s
SHRINKAGE = 0.1


def frame_means(features: np.ndarray) -> np.ndarray:
    """Means of consecutive 2-s stretches; float64 (stretches, dim) of features (frames, dim).

    A remainder is left out, unless the utterance is shorter than one stretch.
    """
    whole = max(1, len(features) // FRAMES_A_MEAN)
    size = min(FRAMES_A_MEAN, len(features))
    return features[: whole * size].astype(np.float64).reshape(whole, size, -1).mean(axis=1)


class LinearDiscriminant:
    """Gaussian classes with one covariance, shrunk towards a diagonal (Fisher 1936; Friedman 1989).

    Args:
        means: (stretches, dim) to fit on.
        speakers: (stretches,) their classes.
        shrinkage: Weight of the mean variance in the covariance of the standardised features, in (0, 1].

    Raises:
        ValueError: If there are fewer than two classes.
    """

    def __init__(self, means: np.ndarray, speakers: np.ndarray, shrinkage: float = SHRINKAGE) -> None:
        self.names, place = np.unique(speakers, return_inverse=True)
        if len(self.names) < 2:
            raise ValueError(f"a speaker probe needs at least two speakers, but has {len(self.names)}: add speakers")
        self._mean, deviation = means.mean(axis=0), means.std(axis=0)
        self._scale = np.divide(1.0, deviation, out=np.zeros_like(deviation), where=deviation > 1e-12)
        standard = (means - self._mean) * self._scale
        centres = np.stack([standard[place == number].mean(axis=0) for number in range(len(self.names))])
        inner = standard - centres[place]
        within = inner.T @ inner / max(len(standard) - len(self.names), 1)
        level = max(float(np.trace(within)) / len(within), 1e-6)
        within = (1 - shrinkage) * within + shrinkage * level * np.eye(len(within))
        self._weight = np.linalg.solve(within, centres.T)
        self._bias = -0.5 * np.einsum("cd,dc->c", centres, self._weight)

    def predict(self, means: np.ndarray) -> np.ndarray:
        """Names of the likeliest speakers (stretches,) of means (stretches, dim)."""
        return self.names[(((means - self._mean) * self._scale) @ self._weight + self._bias).argmax(axis=1)]


def speaker_accuracy(means: Sequence[np.ndarray], speakers: Sequence[str]) -> tuple[float, int] | None:
    """Fits on every other utterance of each speaker and measures accuracy on the rest, from means (stretches, dim) of each utterance.

    Returns:
        Accuracy over stretches and number of speakers; None where fewer than two speakers have two utterances.
    """
    turn: Counter[str] = Counter()
    judged = []
    for speaker in speakers:
        judged.append(turn[speaker] % 2 == 1)
        turn[speaker] += 1
    eligible = {speaker for speaker, count in turn.items() if count > 1}
    if len(eligible) < 2:
        return None
    parts: dict[bool, list[np.ndarray]] = {False: [], True: []}
    names: dict[bool, list[str]] = {False: [], True: []}
    for mean, speaker, test in zip(means, speakers, judged, strict=True):
        if speaker in eligible:
            parts[test].append(mean)
            names[test] += [speaker] * len(mean)
    discriminant = LinearDiscriminant(np.concatenate(parts[False]), np.array(names[False]))
    right = discriminant.predict(np.concatenate(parts[True])) == np.array(names[True])
    return float(right.mean()), len(eligible)


class SpeakerMeans:
    """Means of 2-s stretches by utterance, the data of a speaker probe."""

    def __init__(self) -> None:
        self._means: dict[tuple[str, int], list[np.ndarray]] = {}

    def add(self, speaker: str, utterance: int, features: np.ndarray) -> None:
        """Adds features (frames, dim) of an utterance, or of a part of a long one."""
        self._means.setdefault((speaker, utterance), []).append(frame_means(features))

    def accuracy(self) -> tuple[float, int] | None:
        """`speaker_accuracy` of all that was added."""
        return speaker_accuracy([np.concatenate(parts) for parts in self._means.values()], [who for who, _ in self._means])
