"""Errors of predicted texts and classes; words and characters are counted by jiwer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer


@dataclass(frozen=True)
class Errors:
    """Edits between references and predictions.

    Attributes:
        substitutions, deletions, insertions: Edits of the best alignment.
        length: Symbols of the references.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    length: int = 0

    @property
    def edits(self) -> int:
        """All edits."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Edits over the references' symbols; can be above 1."""
        return self.edits / max(1, self.length)

    def __add__(self, other: "Errors") -> "Errors":
        return Errors(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.length + other.length,
        )


def word_errors(reference: str, prediction: str) -> Errors:
    """Errors of words, those between spaces.

    Raises:
        ValueError: If the reference has no word, of which no rate is defined.
    """
    return _errors(jiwer.process_words, reference, prediction)


def character_errors(reference: str, prediction: str) -> Errors:
    """Errors of characters, spaces included.

    Raises:
        ValueError: If the reference has no character, of which no rate is defined.
    """
    return _errors(jiwer.process_characters, reference, prediction)


def _errors(process: object, reference: str, prediction: str) -> Errors:
    if not reference.split():
        raise ValueError(f"a reference must have at least one word, but is {reference!r}: leave the row out")
    found = process(" ".join(reference.split()), " ".join(prediction.split()))  # type: ignore[operator]
    return Errors(found.substitutions, found.deletions, found.insertions, found.hits + found.substitutions + found.deletions)


def total(errors: Iterable[Errors]) -> Errors:
    """Sum of errors."""
    return sum(errors, Errors())


def class_errors(truth: str, predicted: str) -> Errors:
    """One substitution where a class is wrong."""
    return Errors(int(truth != predicted), 0, 0, 1)


def errors_of(task: str, reference: str, prediction: str) -> Errors:
    """Errors by which a task is judged: words of `ctc`, symbols of `phones`, classes of `sid`."""
    return class_errors(reference, prediction) if task == "sid" else word_errors(reference, prediction)


def mean_rate(errors: Sequence[Errors]) -> float:
    """Rate over all references together, as it is reported."""
    return total(errors).rate
