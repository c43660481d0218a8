"""Lists the utterances of a corpus by the reader of its layout, and checks the list."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openwavlm.audio.formats import EXTENSIONS
from openwavlm.shards.corpora import folder, librispeech, manifest
from openwavlm.shards.corpora.files import FolderFiles, counted, find_files
from openwavlm.shards.corpora.utterance import Utterance

LAYOUTS = ("folder", "manifest", "librispeech")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Content of an input.

    Attributes:
        root: Folder that the audio paths are relative to.
        utterances: All utterances in corpus order.
        ignored: Number of the other files by suffix; empty for a manifest.
    """

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
    files = FolderFiles()
    if layout == "manifest":
        by_name = settings.get("columns_by_name", True)
        found = list(manifest.utterances(input, columns=settings["columns"], language=language, by_name=by_name, notes=notes))
    else:
        files = find_files(input, subfolders)
        if layout == "librispeech":
            found = list(librispeech.utterances(input, files.audio, language=language or "en", notes=notes))
        else:
            speaker_folder = settings["speaker_folder"]
            found = list(folder.utterances(input, files.audio, speaker_folder=speaker_folder, language=language))
    _log_notes(files, notes)
    if not found and layout == "manifest":
        raise ValueError(
            f"the manifest {input} has no rows: give each utterance a line, in .tsv and .csv below a first line of column names"
        )
    if not found:
        beside = f" ({counted(files.ignored)})" if files.ignored else ""
        raise ValueError(f"there is no recording in {input}{beside}: looked for {', '.join(sorted(EXTENSIONS))}")
    corpus = Corpus(corpus_root(input, layout), found, dict(sorted(files.ignored.items())))
    corpus.check_names()
    return corpus


def _log_notes(files: FolderFiles, notes: Counter[str]) -> None:
    for path in files.linked_again[:10]:
        logger.warning("%s is a link to a folder that is listed already: ignored", path)
    for path in files.special[:10]:
        logger.warning("%s is a FIFO, a socket or a device: ignored", path)
    for sentence, number in sorted(notes.items()):
        if number:
            logger.log(logging.INFO if sentence.endswith(manifest.ONLY_KEPT) else logging.WARNING, "%d %s", number, sentence)
