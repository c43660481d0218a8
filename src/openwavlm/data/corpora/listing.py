"""Which reader lists which layout, and what every listing must satisfy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openwavlm.data.audio import EXTENSIONS
from openwavlm.data.corpora import folder, librispeech, manifest
from openwavlm.data.corpora.utterance import Utterance

LAYOUTS = ("folder", "manifest", "librispeech")


def list_corpus(input: Path, settings: Mapping[str, Any], subfolders: Sequence[str] = ()) -> list[Utterance]:
    """Lists all utterances of a corpus.

    Args:
        input: Folder or manifest.
        settings: `layout`, `language`, and what the layout needs: `columns` or `speaker_folder`.
        subfolders: Parts of a folder to take; empty for all.

    Raises:
        ValueError: If the corpus is missing, malformed or empty, or two utterances have one name.
    """
    language = settings["language"]
    if settings["layout"] == "manifest":
        found = list(manifest.utterances(input, columns=settings["columns"], language=language))
    elif settings["layout"] == "librispeech":
        found = list(librispeech.utterances(input, subfolders=subfolders, language=language or "en"))
    else:
        speaker_folder = settings["speaker_folder"]
        found = list(folder.utterances(input, speaker_folder=speaker_folder, subfolders=subfolders, language=language))
    if not found:
        raise ValueError(f"there is no recording in {input}: looked for {', '.join(sorted(EXTENSIONS))}")
    paths: dict[str, str] = {}
    for utterance in found:
        if utterance.name in paths:
            raise ValueError(
                f"every utterance needs a name of its own, but {paths[utterance.name]} and {utterance.path} are both "
                f"{utterance.name!r}: remove or rename one of them"
            )
        paths[utterance.name] = utterance.path
    return found
