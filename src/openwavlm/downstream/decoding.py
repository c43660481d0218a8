"""Decoding of CTC by a beam search over symbols or words, with a language model: torchaudio's `ctc_decoder`, on flashlight-text.

Two facts of torchaudio 2.11 that this file works around:

- Without a lexicon it hands the language model a dictionary in another order than the symbols' (that of a hash table), so every symbol
  gets another one's score. `lm_dict`, a file in the symbols' order, prevents that.
- A lexicon's word is complete after its delimiter, which a model that was trained without a final one does not emit, so the last word is
  lost. One more frame, in which the delimiter is certain, completes it.
"""

import importlib
import importlib.util
import logging
import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openwavlm.downstream.settings import Task
from openwavlm.downstream.vocabulary import BLANK, DELIMITER, SPECIAL, Vocabulary

log = logging.getLogger(__name__)
_PACKAGES = {"torchaudio": "torchaudio", "flashlight": "flashlight-text"}
_INSTALL = "pip install 'openwavlm[decode]', or task.decoder=greedy"
_BINARY = b"mmap lm http://kheafield.com/code"
_IMPOSSIBLE = -1e4  # log-probability; beyond the beam's threshold of 50
_SHOWN = 10


class BeamDecoder:
    """Texts of logits by a beam search.

    Args:
        task: Its `beam`, `lexicon`, `language_model`, `lm_weight` and `word_score`.
        vocabulary: Output symbols.

    Raises:
        ValueError: As `check_beam` does, or if the language model cannot be read.
    """

    def __init__(self, task: Task, vocabulary: Vocabulary) -> None:
        spellings = check_beam(task, vocabulary)
        self._vocabulary, self._of_words = vocabulary, spellings is not None
        with tempfile.TemporaryDirectory() as temporary:
            lexicon, order = Path(temporary) / "lexicon", Path(temporary) / "symbols"
            lines = [f"{word} {' '.join(spelling)}" for word, spelling in spellings or ()]
            lexicon.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
            order.write_text("".join(f"{symbol}\n" for symbol in vocabulary.symbols), encoding="utf-8")
            try:
                self._decoder = _ctc_decoder()(
                    lexicon=str(lexicon) if self._of_words else None,
                    tokens=list(vocabulary.symbols),
                    lm=task.language_model,
                    lm_dict=None if self._of_words else str(order),
                    beam_size=task.beam,
                    lm_weight=task.lm_weight,
                    word_score=task.word_score,
                    blank_token=vocabulary.symbols[BLANK],
                    # Phones have no delimiter; it then only begins a hypothesis, and is dropped as the blank is.
                    sil_token=vocabulary.symbols[BLANK] if vocabulary.phones else DELIMITER,
                    unk_word=SPECIAL[-1],
                )
            except RuntimeError as error:
                reason = " ".join(str(error).split())[-200:]  # KenLM's begin with lines of its own source
                raise ValueError(
                    f"task.language_model={task.language_model} cannot be read (… {reason}): write it again, with two orders at least"
                ) from error

    def __call__(self, logits: Tensor) -> str:
        """Best text of one row's logits (frames, symbols), all of them valid; empty without a frame."""
        emissions = logits.detach().float().cpu().log_softmax(-1)
        if not len(emissions):
            return ""
        if self._of_words:
            last = torch.full_like(emissions[:1], _IMPOSSIBLE)
            last[0, self._vocabulary.symbols.index(DELIMITER)] = 0.0
            emissions = torch.cat([emissions, last])
        best = self._decoder(emissions.unsqueeze(0).contiguous())[0]
        if not best:
            return ""
        return " ".join(best[0].words) if self._of_words else self._vocabulary.decode(best[0].tokens.tolist())


def check_beam(task: Task, vocabulary: Vocabulary) -> list[tuple[str, list[str]]] | None:
    """Checks what a beam search needs, before training; returns the lexicon's words with their spellings, None without a lexicon.

    Raises:
        ValueError: If a package is missing, the lexicon or the language model is missing or damaged, a spelling has symbols outside the
            vocabulary, or the language model knows none of the words (without a lexicon: of the symbols).
    """
    _ctc_decoder()
    spellings = _read_lexicon(Path(task.lexicon), vocabulary) if task.lexicon else None
    if task.language_model:
        words = [word for word, _ in spellings] if spellings is not None else vocabulary.symbols[len(SPECIAL) :]
        _check_known(task, words)
    return spellings


def _ctc_decoder() -> Any:
    """torchaudio's function.

    Raises:
        ValueError: If a package is missing, or cannot be imported beside this torch.
    """
    missing = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise ValueError(f"task.decoder=beam needs {' and '.join(missing)}, not installed here: {_INSTALL}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torchaudio 2.8 and 2.9 announce its removal, which 2.11 took back
            return importlib.import_module("torchaudio.models.decoder").ctc_decoder
    except (ImportError, OSError, RuntimeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise ValueError(
            f"task.decoder=beam needs torchaudio, which cannot be imported beside torch {torch.__version__} ({reason}): {_INSTALL}"
        ) from error


def _read_lexicon(path: Path, vocabulary: Vocabulary) -> list[tuple[str, list[str]]]:
    """Words with their spellings: a word on each line, and its symbols after it where they are not its letters."""
    rows = [fields for line in _text(path, "task.lexicon").splitlines() if (fields := line.split())]
    if not rows:
        raise ValueError(f"task.lexicon must have a word on each line, but {path} is empty")
    known = {*vocabulary.symbols[len(SPECIAL) :]} - {DELIMITER}  # it ends words
    found: dict[tuple[str, ...], None] = {}
    unknown: dict[str, list[str]] = {}
    for word, *symbols in rows:
        spelling = symbols or list(word)
        spelling = spelling[:-1] if spelling[-1] == DELIMITER else spelling
        for symbol in spelling or [DELIMITER]:
            if symbol not in known:
                unknown.setdefault(symbol, []).append(word)
        found[word, *spelling, DELIMITER] = None
    if unknown:
        words = [word for of_symbol in unknown.values() for word in of_symbol]
        raise ValueError(
            f"{path} has {len(set(words))} words with letters outside the vocabulary ({', '.join(map(repr, sorted(unknown)[:_SHOWN]))}, as "
            f"in {_some(words)}): write them as the transcripts are after task.letters and task.replace, or remove them"
        )
    return [(word, list(spelling)) for word, *spelling in found]


def _check_known(task: Task, words: Iterable[str]) -> None:
    """Refuses a language model without any of the words that the search asks it for; logs the number that it lacks."""
    path, words = Path(str(task.language_model)), list(words)
    if not path.is_file():
        raise ValueError(f"task.language_model must be an ARPA file, or KenLM's binary, but {path} does not exist")
    with path.open("rb") as file:
        if file.read(len(_BINARY)) == _BINARY:  # its words are hashes
            return
    units = _unigrams(path)
    lacking = [word for word in words if word not in units]
    kind = "words of task.lexicon" if task.lexicon else "symbols of the vocabulary"
    if len(lacking) == len(words):
        remedy = (
            "write both in the same case"
            if task.lexicon
            else f"without task.lexicon it is of symbols, with {DELIMITER} between words; or name a lexicon"
        )
        raise ValueError(f"task.language_model={path} has none of the {len(words)} {kind} ({_some(words)}): {remedy}")
    if lacking:
        log.warning("%s lacks %d of the %d %s (%s)", path, len(lacking), len(words), kind, _some(lacking))


def _unigrams(path: Path) -> set[str]:
    r"""Words of an ARPA file: the second column of its section `\1-grams:`."""
    found: set[str] = set()
    try:
        with path.open(encoding="utf-8") as file:
            inside = False
            for line in file:
                if line.startswith("\\"):
                    if inside:
                        return found
                    inside = line.strip() == "\\1-grams:"
                elif inside and len(fields := line.split()) > 1:
                    found.add(fields[1])
    except UnicodeDecodeError:
        found = set()
    if not found:
        raise ValueError(
            f"task.language_model={path} has no section \\1-grams: of an ARPA file: decompress it, or write it again"
        )
    return found


def _text(path: Path, key: str) -> str:
    if not path.is_file():
        raise ValueError(f"{key} must be a text file, but {path} does not exist")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error


def _some(words: Iterable[str]) -> str:
    found = list(dict.fromkeys(words))
    return ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
