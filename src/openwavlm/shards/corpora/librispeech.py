"""LibriSpeech and corpora laid out like it: `…/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac` beside `SPEAKER-CHAPTER.trans.txt`."""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from openwavlm.shards.corpora.utterance import Utterance, portable


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


def utterances(
    root: Path, paths: Iterable[Path], *, language: str = "en", notes: Counter[str] | None = None
) -> Iterator[Utterance]:
    """Lists a LibriSpeech tree in the order of `paths`: the speaker is the reader's number, the recording the reader's chapter.

    `root` is the tree (`LibriSpeech`) or one part of it (`LibriSpeech/train-clean-100`); `notes` collects sentences for the log, each
    with its number of files.

    Raises:
        ValueError: If a file does not fit the layout, or transcripts are not UTF-8 or occur twice.
    """
    notes = Counter() if notes is None else notes
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
