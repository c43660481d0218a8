"""A folder of recordings, each file one utterance."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from openwavlm.shards.corpora.utterance import Utterance, portable


def utterances(root: Path, paths: Iterable[Path], *, speaker_folder: int = 0, language: str = "") -> Iterator[Utterance]:
    """Makes of every audio file below a folder one utterance, which is also its own recording.

    Args:
        root: Folder of the corpus.
        paths: Its audio files.
        speaker_folder: Which folder below the root names the speaker: 1 for `root/SPEAKER/…/x.wav`, 2 for
            `root/…/SPEAKER/x.wav`; 0 when speakers are unknown.
        language: Language of all files; empty when unknown.

    Yields:
        Utterances in the order of the files.

    Raises:
        ValueError: If a file lies too high up to have a speaker's folder.
    """
    for path in paths:
        relative = path.relative_to(root)
        if len(relative.parts) <= speaker_folder:
            raise ValueError(
                f"speaker_folder={speaker_folder} takes the speaker from that many folders down, but {relative} lies higher: "
                "lower speaker_folder, or move the file"
            )
        name = portable(relative.with_suffix("").as_posix())
        speaker = portable(relative.parts[speaker_folder - 1]) if speaker_folder else ""
        yield Utterance(name, relative.as_posix(), speaker=speaker, recording=name, language=language)
