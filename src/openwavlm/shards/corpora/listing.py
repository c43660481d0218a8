"""Lists the utterances of a corpus by the reader of its layout, and checks the list."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openwavlm.audio.formats import EXTENSIONS
from openwavlm.shards.corpora import manifest
from openwavlm.shards.corpora.files import FolderFiles, counted, find_files
from openwavlm.shards.corpora.utterance import Utterance, portable

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Utterances of an input in corpus order, with paths relative to `root`, and its number of other files by suffix."""

    root: Path
    utterances: list[Utterance]
    ignored: Mapping[str, int]

    def check_names(self) -> None:
        """Raises a ValueError if two utterances have one name."""
        paths: dict[str, str] = {}
        for utterance in self.utterances:
            if utterance.name in paths:
                raise ValueError(
                    f"every utterance needs a name of its own, but {paths[utterance.name]} and {utterance.path} are both "
                    f"{utterance.name!r}: remove or rename one of them"
                )
            paths[utterance.name] = utterance.path


def corpus_root(input: Path, layout: str) -> Path:
    """Folder that the audio paths of a corpus are relative to."""
    return input.parent if layout == "manifest" else input


def list_corpus(input: Path, settings: Mapping[str, Any], subfolders: Sequence[str] = ()) -> Corpus:
    """Lists all utterances of a folder or manifest by the settings of `make_shards`.

    Raises:
        ValueError: If the corpus is missing, malformed or empty, or two utterances have one name.
    """
    layout, language = settings["layout"], settings["language"]
    notes: Counter[str] = Counter()
    files = FolderFiles() if layout == "manifest" else find_files(input, subfolders)
    if layout == "manifest":
        by_name = settings.get("columns_by_name", True)
        found = list(manifest.utterances(input, columns=settings["columns"], language=language, by_name=by_name, notes=notes))
    elif layout == "librispeech":
        found = list(librispeech_utterances(input, files.audio, notes, language=language or "en"))
    else:
        speaker_folder = settings["speaker_folder"]
        found = list(folder_utterances(input, files.audio, speaker_folder=speaker_folder, language=language))
    for path in files.linked_again[:10]:
        logger.warning(f"{path} is a link to a folder that is listed already: ignored")
    for path in files.special[:10]:
        logger.warning(f"{path} is a FIFO, a socket or a device: ignored")
    for sentence, number in sorted((+notes).items()):
        logger.log(logging.INFO if sentence.endswith(manifest.ONLY_KEPT) else logging.WARNING, f"{number} {sentence}")
    if not found and layout == "manifest":
        raise ValueError(
            f"the manifest {input} has no rows: give one line per utterance, in .tsv and .csv after a first line of column names"
        )
    if not found:
        beside = f" ({counted(files.ignored)})" if files.ignored else ""
        raise ValueError(f"there is no recording in {input}{beside}: looked for {', '.join(sorted(EXTENSIONS))}")
    corpus = Corpus(corpus_root(input, layout), found, dict(sorted(files.ignored.items())))
    corpus.check_names()
    return corpus


def folder_utterances(root: Path, paths: Iterable[Path], *, speaker_folder: int = 0, language: str = "") -> Iterator[Utterance]:
    """Yields each file as an utterance and recording of its own; the folder at depth `speaker_folder` names its speaker (0: unknown)."""
    for path in paths:
        relative = path.relative_to(root)
        if len(relative.parts) <= speaker_folder:
            raise ValueError(
                f"with speaker_folder={speaker_folder} every file needs that many folders above it, but {relative} has fewer: lower "
                "speaker_folder, or move the file"
            )
        name = portable(relative.with_suffix("").as_posix())
        speaker = portable(relative.parts[speaker_folder - 1]) if speaker_folder else ""
        yield Utterance(name, relative.as_posix(), speaker=speaker, recording=name, language=language)


def librispeech_utterances(
    root: Path, paths: Iterable[Path], notes: Counter[str], *, language: str = "en"
) -> Iterator[Utterance]:
    """Yields `…/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac` with its text in `SPEAKER-CHAPTER.trans.txt`; a recording is a chapter.

    Args:
        root: The tree (`LibriSpeech`) or one part of it (`LibriSpeech/train-clean-100`).
        paths: Audio files below the root.
        notes: Collects sentences for the log, each with its number of files.
        language: Language of all files.

    Raises:
        ValueError: If a file does not fit the layout, or transcripts are not UTF-8 or occur twice.
    """
    texts: dict[Path, dict[str, str]] = {}
    for path in paths:
        relative = path.relative_to(root)
        chapter, speaker = path.parent.name, path.parent.parent.name
        recording = f"{speaker}-{chapter}"
        if not path.stem.startswith(f"{recording}-"):
            raise ValueError(
                f"layout=librispeech expects SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac, but found {relative}: "
                "use layout=folder with speaker_folder"
            )
        if path.parent not in texts:
            texts[path.parent] = _transcripts(path.parent / f"{recording}.trans.txt")
        text = texts[path.parent].pop(path.stem, "")
        notes["files without a transcript"] += not text
        name = portable(relative.with_suffix("").as_posix())
        yield Utterance(name, relative.as_posix(), speaker=speaker, recording=recording, text=text, language=language)
    notes["transcripts without an audio file"] += sum(map(len, texts.values()))


def _transcripts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"the transcripts {path} are not UTF-8 (byte {error.start}): convert them to UTF-8") from error
    texts: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        key, _, text = line.strip().replace("\t", " ", 1).partition(" ")
        if key in texts:
            raise ValueError(f"{path}, line {number}: there is a second transcript of {key}: remove one")
        if key:
            texts[key] = text.strip()
    return texts
