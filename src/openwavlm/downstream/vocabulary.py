"""Output symbols of a task: characters or phones for CTC, labels for classification."""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from openwavlm.downstream.settings import Task

BLANK = 0
DELIMITER = "|"
# As in the published CTC models of wav2vec 2.0's family, so that every tool finds its symbols; the blank is the padding.
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")


@dataclass(frozen=True)
class Vocabulary:
    """Output symbols of a CTC task.

    Attributes:
        symbols: By number; the first is the blank.
        phones: Whether targets are symbols between spaces, and not characters.
    """

    symbols: tuple[str, ...]
    phones: bool

    @classmethod
    def of(cls, targets: Iterable[str], *, phones: bool) -> "Vocabulary":
        """Builds the vocabulary of prepared targets: every symbol that occurs, in the order of their code points.

        Raises:
            ValueError: If a target holds a special symbol.
        """
        found: set[str] = set()
        for target in targets:
            found.update(target.split() if phones else target.replace(" ", DELIMITER))
        taken = sorted(found.intersection(SPECIAL))
        if taken:
            raise ValueError(
                f"{', '.join(taken)} is a special symbol of CTC, but occurs in a target: remove it by 'task.replace=[\"{taken[0]}=\"]'"
            )
        first = () if phones else (DELIMITER,)
        return cls((*SPECIAL, *first, *sorted(found.difference(first))), phones)

    def __len__(self) -> int:
        return len(self.symbols)

    def unknown(self, target: str) -> list[str]:
        """Symbols of a prepared target that are not in the vocabulary, each once, in order."""
        return [symbol for symbol in dict.fromkeys(self._split(target)) if symbol not in self.symbols]

    def encode(self, target: str) -> list[int]:
        """Numbers of a prepared target's symbols; a symbol outside the vocabulary is a ValueError."""
        if unknown := self.unknown(target):
            raise ValueError(f"{' '.join(unknown)} is not in the vocabulary ({target[:60]!r}): replace it by task.replace")
        numbers = {symbol: number for number, symbol in enumerate(self.symbols)}
        return [numbers[symbol] for symbol in self._split(target)]

    def _split(self, target: str) -> list[str]:
        return target.split() if self.phones else list(target.replace(" ", DELIMITER))

    def decode(self, numbers: Iterable[int]) -> str:
        """Text of a sequence of numbers without blanks and repetitions; special symbols are left out."""
        symbols = [self.symbols[number] for number in numbers if number >= len(SPECIAL)]
        if self.phones:
            return " ".join(symbols)
        return " ".join("".join(symbols).replace(DELIMITER, " ").split())

    def greedy(self, best: Sequence[int]) -> str:
        """Text of the best symbol of each frame: repetitions are merged, then blanks removed."""
        kept = [number for place, number in enumerate(best) if number != BLANK and (place == 0 or number != best[place - 1])]
        return self.decode(kept)


def prepared(target: str, task: Task) -> str:
    """A target as the task reads it: replacements, then case, then single spaces."""
    for old, new in task.replacements:
        target = target.replace(old, new)
    if task.letters != "as_is":
        target = target.upper() if task.letters == "upper" else target.lower()
    return " ".join(target.split())


def frames_needed(numbers: Sequence[int]) -> int:
    """Least number of frames from which CTC can emit a sequence: one a symbol, and a blank between two equal ones."""
    return len(numbers) + sum(a == b for a, b in itertools.pairwise(numbers))
