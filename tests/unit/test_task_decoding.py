"""Beam search: equal to greedy decoding where nothing else is asked for, turned by a lexicon or a language model, refused in a sentence."""

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openwavlm.downstream.decoding import BeamDecoder, check_beam
from openwavlm.downstream.settings import Task
from openwavlm.downstream.vocabulary import Vocabulary
from torch_audio import torchaudio

CHARACTERS = Vocabulary.of(["ab ba", "cab"], phones=False)
PHONES = Vocabulary.of(["AH B AH", "S"], phones=True)
needs_packages = pytest.mark.skipif(
    importlib.util.find_spec("flashlight") is None, reason="flashlight-text is not installed: the extra decode has it"
)


@pytest.fixture(autouse=True)
def _importable(request):
    if request.node.get_closest_marker("skipif"):
        torchaudio()


def logits_of(path: list[int], vocabulary: Vocabulary = CHARACTERS, *, level: float = 9.0) -> Tensor:
    """Frames (frames, symbols) in which one symbol is by far the best."""
    found = torch.zeros(len(path), len(vocabulary))
    found[torch.arange(len(path)), torch.tensor(path, dtype=torch.long)] = level
    return found


def path_of(text: str) -> list[int]:
    """Numbers of a frame each; `-` is the blank."""
    return [CHARACTERS.symbols.index("<pad>" if letter == "-" else letter) for letter in text]


def between(one: str, other: str, *, lead: float) -> Tensor:
    """Frames of two paths of equal length, the first of which is likelier by `lead` nats in every frame that differs."""
    return torch.maximum(logits_of(path_of(one)), logits_of(path_of(other), level=9.0 - lead))


def arpa(path: Path, unigrams: dict[str, float], bigrams: dict[str, float] | None = None) -> str:
    """Writes a language model; base-10 logarithms."""
    known, pairs = {"<unk>": -4.0, "<s>": -99.0, "</s>": -1.0} | unigrams, bigrams or {"<s> </s>": -1.0}
    sections = [
        f"\\data\\\nngram 1={len(known)}\nngram 2={len(pairs)}\n",
        "\\1-grams:\n" + "".join(f"{score}\t{word}\t0.0\n" for word, score in known.items()),
        "\\2-grams:\n" + "".join(f"{score}\t{pair}\n" for pair, score in pairs.items()),
        "\\end\\\n",
    ]
    path.write_text("\n".join(sections))
    return str(path)


def lexicon(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@needs_packages
@pytest.mark.parametrize("vocabulary", [CHARACTERS, PHONES], ids=["characters", "phones"])
def test_sharp_frames_are_decoded_as_greedily_without_lexicon_and_language_model(vocabulary):
    decoder, generator = BeamDecoder(Task(decoder="beam"), vocabulary), random.Random(2)
    usable = [0, 0, *range(4, len(vocabulary))]
    for _ in range(200):
        path = [generator.choice(usable) for _ in range(generator.randint(1, 30))]
        assert decoder(logits_of(path, vocabulary)) == vocabulary.greedy(path), path
    assert decoder(torch.zeros(0, len(vocabulary))) == ""


@needs_packages
def test_a_language_model_of_two_words_turns_an_ambiguous_word(tmp_path):
    words = lexicon(tmp_path / "words", "ab", "cab c a b |", "ba")
    frames = between("ba|-ab", "ba|cab", lead=1.0)  # "ab" is likelier by a nat
    alone = BeamDecoder(Task(decoder="beam", lexicon=words), CHARACTERS)
    assert alone(frames) == CHARACTERS.greedy(frames.argmax(-1).tolist()) == "ba ab"
    model = arpa(tmp_path / "lm.arpa", {"ab": -2.0, "cab": -2.0, "ba": -1.0}, {"ba ab": -3.0, "ba cab": -0.1})
    weighed = Task(decoder="beam", lexicon=words, language_model=model, lm_weight=1.0)
    assert BeamDecoder(weighed, CHARACTERS)(frames) == "ba cab"  # 2.9 of base 10 are 6.7 nats
    off = Task(decoder="beam", lexicon=words, language_model=model, lm_weight=0.0)
    assert BeamDecoder(off, CHARACTERS)(frames) == "ba ab"


@needs_packages
@pytest.mark.parametrize(("scores", "text"), [((-0.1, -3.0), "a"), ((-3.0, -0.1), "b")])
def test_a_language_model_of_symbols_scores_each_symbol_by_its_own_entry(tmp_path, scores, text):
    model = arpa(tmp_path / "lm.arpa", {"|": -1.0, "a": scores[0], "b": scores[1], "c": -1.0})
    decoder = BeamDecoder(Task(decoder="beam", language_model=model, lm_weight=1.0), CHARACTERS)
    for one, other in (("a", "b"), ("b", "a")):
        assert decoder(between(one, other, lead=1.0)) == text


@needs_packages
def test_with_a_lexicon_every_word_is_kept_whether_or_not_a_delimiter_ends_the_row(tmp_path):
    decoder = BeamDecoder(Task(decoder="beam", lexicon=lexicon(tmp_path / "words", "ab", "ba")), CHARACTERS)
    for path in ("ab|ba", "ab|ba|", "|ab|-ba--", "aab||b-aa|"):
        assert decoder(logits_of(path_of(path))) == "ab ba", path
    assert decoder(between("ab|bc", "ab|ba", lead=4.0)) == "ab ba", "a word outside the lexicon becomes one of it"


@needs_packages
def test_a_score_of_words_prefers_more_words(tmp_path):
    words, frames = lexicon(tmp_path / "words", "abba", "ab", "ba"), between("ab-ba", "ab|ba", lead=1.0)
    for score, text in ((0.0, "abba"), (2.0, "ab ba")):
        assert BeamDecoder(Task(decoder="beam", lexicon=words, word_score=score), CHARACTERS)(frames) == text


@needs_packages
def test_wrong_files_are_refused_in_a_sentence(tmp_path):
    def refused(message: str, **keys: str) -> None:
        with pytest.raises(ValueError, match=message):
            BeamDecoder(Task(decoder="beam", **keys), CHARACTERS)

    words = lexicon(tmp_path / "words", "ab", "ba")
    foreign = lexicon(tmp_path / "foreign", "ab", "äb", "bad", "ba B A")
    refused(r"3 words with letters outside the vocabulary \('A', 'B', 'd', 'ä', as in äb, bad, ba\)", lexicon=foreign)
    refused("task.lexicon must be a text file, but .*nowhere does not exist", lexicon=str(tmp_path / "nowhere"))
    refused("must have a word on each line, but .* is empty", lexicon=lexicon(tmp_path / "empty", ""))
    refused(r"outside the vocabulary \('\|', as in \|\)", lexicon=lexicon(tmp_path / "delimiter", "|"))
    refused("must be an ARPA file, or KenLM's binary, but .* does not exist", language_model=str(tmp_path / "nowhere.arpa"))
    other = arpa(tmp_path / "other.arpa", {"AB": -1.0})
    refused("has none of the 2 words of task.lexicon .ab, ba.: write both in the same case", lexicon=words, language_model=other)
    refused(r"none of the 4 symbols of the vocabulary \(\|, a, b, c\): without task.lexicon", language_model=other)
    (tmp_path / "page").write_text("<html>")
    refused(r"no section \\1-grams: of an ARPA file", language_model=str(tmp_path / "page"))
    cut = tmp_path / "cut.arpa"
    cut.write_text(Path(arpa(tmp_path / "whole.arpa", {"ab": -1.0, "ba": -2.0})).read_text().replace("-2.0\tba\t0.0\n", ""))
    refused("cannot be read .*: write it again", lexicon=words, language_model=str(cut))


@needs_packages
def test_words_that_the_language_model_lacks_are_counted(tmp_path, caplog):
    words, model = lexicon(tmp_path / "words", "ab", "ba"), arpa(tmp_path / "lm.arpa", {"ab": -1.0})
    assert check_beam(Task(decoder="beam", lexicon=words, language_model=model), CHARACTERS) == [
        ("ab", ["a", "b", "|"]),
        ("ba", ["b", "a", "|"]),
    ]
    assert "lacks 1 of the 2 words of task.lexicon (ba)" in caplog.text


@pytest.mark.parametrize("missing", [("flashlight",), ("torchaudio",)])
def test_without_its_packages_a_beam_search_is_refused_with_the_extra(missing, monkeypatch):
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ValueError, match=r"needs .*(flashlight-text|torchaudio), not installed here: pip install 'openwavlm\[decode\]'"
    ):
        check_beam(Task(decoder="beam"), CHARACTERS)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lexicon": "words"}, "task.lexicon is used by task.decoder=beam alone, but task.decoder is greedy"),
        ({"language_model": "lm.arpa"}, "task.language_model is used by task.decoder=beam alone"),
        ({"name": "sid", "decoder": "beam"}, "task.decoder=beam decodes sequences, but task=sid predicts one class"),
        ({"name": "phones", "decoder": "beam", "lexicon": "words"}, "task.lexicon is a lexicon of words"),
        ({"beam": 0}, "task.beam must be at least 1"),
        ({"lm_weight": -1.0}, "task.lm_weight not negative"),
        ({"word_score": float("nan")}, "task.word_score finite"),
    ],
)
def test_keys_that_do_not_fit_are_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        Task(**keys)
