"""A folder of recordings, each file one utterance."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from openwavlm.shards.corpora.utterance import Utterance, portable


def utterances(root: Path, paths: Iterable[Path], *, speaker_folder: int = 0, language: str = "") -> Iterator[Utterance]:
    """Makes an utterance, which is also its own recording, of every audio file below a folder, in the order of `paths`.

    Args:
        root: Folder of the corpus.
        paths: Audio files of the corpus.
        speaker_folder: Depth of the folder that names the speaker: 1 for `root/SPEAKER/…/x.wav`, 2 for `root/…/SPEAKER/x.wav`; 0 when
            speakers are unknown.
        language: Language of all files; empty when unknown.

    Raises:
        ValueError: If a file is not deep enough to have a speaker's folder.
    """
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
