"""Error rates of predictions beside an alignment written out."""

import random

import pytest

from openwavlm.downstream.scoring import Errors, character_errors, class_errors, errors_of, mean_rate, total, word_errors


def distance(reference: list[str], prediction: list[str]) -> int:
    """Levenshtein's distance by its recursion over prefixes."""
    row = list(range(len(prediction) + 1))
    for number, symbol in enumerate(reference, start=1):
        before, row[0] = row[0], number
        for place, other in enumerate(prediction, start=1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (symbol != other))
    return row[-1]


def test_edits_of_a_thousand_pairs_are_levenshteins_distance():
    generator = random.Random(1)

    def text(least: int) -> str:
        words = ["".join(generator.choices("abc", k=generator.randint(1, 3))) for _ in range(generator.randint(least, 7))]
        return " ".join(words)

    for _ in range(1000):
        reference, prediction = text(1), text(0)
        words, letters = word_errors(reference, prediction), character_errors(reference, prediction)
        assert words.edits == distance(reference.split(), prediction.split()), (reference, prediction)
        assert letters.edits == distance(list(reference), list(prediction)), (reference, prediction)
        assert (words.length, letters.length) == (len(reference.split()), len(reference))
        assert words.insertions - words.deletions == len(prediction.split()) - words.length


def test_the_rate_is_of_all_references_together():
    errors = [word_errors("a b c d", "a b c d"), word_errors("a", "b c")]
    assert total(errors) == Errors(1, 0, 1, 5) and mean_rate(errors) == pytest.approx(2 / 5)
    assert mean_rate([]) == 0.0


def test_classes_are_right_or_wrong():
    assert class_errors("a b", "a b") == Errors(0, 0, 0, 1) and errors_of("sid", "a b", "a") == Errors(1, 0, 0, 1)
    assert errors_of("phones", "a b", "a") == Errors(0, 1, 0, 2) == errors_of("ctc", "a b", "a")


@pytest.mark.parametrize("errors", [word_errors, character_errors])
def test_an_empty_reference_is_refused(errors):
    with pytest.raises(ValueError, match="at least one word, but is ' '"):
        errors(" ", "a")
