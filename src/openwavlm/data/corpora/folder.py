"""A folder of recordings, each file one utterance."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from openwavlm.data.corpora.utterance import Utterance, audio_files, portable


def utterances(root: Path, *, speaker_folder: int = 0, subfolders: Sequence[str] = (), language: str = "") -> Iterator[Utterance]:
    """Lists every audio file below a folder as one utterance, which is also its own recording.

    Args:
        root: Folder of the corpus; searched recursively.
        speaker_folder: Which folder below the root names the speaker: 1 for `root/SPEAKER/…/x.wav`, 2 for
            `root/…/SPEAKER/x.wav`; 0 when speakers are unknown.
        subfolders: Folders below the root to which the search is limited; empty for all.
        language: Language of all files; empty when unknown.

    Yields:
        Utterances, those of a folder before those of its sub-folders.

    Raises:
        ValueError: If the root or a sub-folder does not exist, or a file lies too high up to have a speaker's folder.
    """
    for path in audio_files(root, subfolders):
        relative = path.relative_to(root)
        if len(relative.parts) <= speaker_folder:
            raise ValueError(
                f"speaker_folder={speaker_folder} takes the speaker from that many folders down, but {relative} lies higher: "
                "lower speaker_folder, or move the file"
            )
        name = portable(relative.with_suffix("").as_posix())
        speaker = portable(relative.parts[speaker_folder - 1]) if speaker_folder else ""
        yield Utterance(name, relative.as_posix(), speaker=speaker, recording=name, language=language)
