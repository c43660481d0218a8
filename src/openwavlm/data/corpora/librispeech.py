"""LibriSpeech and corpora laid out like it: `…/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac` beside `SPEAKER-CHAPTER.trans.txt`."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from openwavlm.data.corpora.utterance import Utterance, audio_files, portable


@lru_cache(maxsize=4)
def _transcripts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = (line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
    return {key: text.strip() for key, _, text in lines}


def utterances(root: Path, *, subfolders: Sequence[str] = (), language: str = "en") -> Iterator[Utterance]:
    """Lists a LibriSpeech tree: the speaker is the reader's number, the recording the reader's chapter.

    Args:
        root: The tree (`LibriSpeech`) or one part of it (`LibriSpeech/train-clean-100`).
        subfolders: Parts to take (`["train-clean-100", "train-clean-360"]`); empty for all.
        language: Language of all files.

    Yields:
        Utterances, those of a folder before those of its sub-folders, with transcripts where there are any.

    Raises:
        ValueError: If the root or a part does not exist, or a file does not fit the layout.
    """
    for path in audio_files(root, subfolders):
        relative = path.relative_to(root)
        chapter, speaker = path.parent.name, path.parent.parent.name
        recording = f"{speaker}-{chapter}"
        if not path.stem.startswith(f"{recording}-"):
            raise ValueError(
                f"layout=librispeech expects SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac, but found {relative}: "
                "use layout=folder with speaker_folder"
            )
        text = _transcripts(path.parent / f"{recording}.trans.txt").get(path.stem, "")
        name = portable(relative.with_suffix("").as_posix())
        yield Utterance(name, relative.as_posix(), speaker=speaker, recording=recording, text=text, language=language)
