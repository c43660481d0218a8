"""What a corpus reader yields: one utterance of one audio file, and the folder walk that the readers share."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openwavlm.data.audio import EXTENSIONS, UNREADABLE_EXTENSIONS


@dataclass(frozen=True)
class Utterance:
    """A stretch of speech in an audio file.

    Attributes:
        name: What identifies it within its source, on every machine: the relative path without extension, plus the segment.
        path: Audio file relative to the corpus root (absolute if it lies elsewhere).
        start_s: Where it begins, seconds.
        end_s: Where it ends; None for the end of the file.
        speaker: Name within the source; empty when unknown.
        recording: The uninterrupted recording that it comes from.
        text: Transcript; empty when unknown.
        language: Language code; empty when unknown.
        extra: Any other fields of the corpus; they travel into the shard's JSON.
    """

    name: str
    path: str
    start_s: float = 0.0
    end_s: float | None = None
    speaker: str = ""
    recording: str = ""
    text: str = ""
    language: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def portable(text: str) -> str:
    """The text with what a one-line-per-entry table cannot hold replaced: line breaks, tabs and undecodable file names."""
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def audio_files(root: Path, subfolders: Sequence[str] = ()) -> Iterator[Path]:
    """Walks a corpus, files before sub-folders and both sorted; follows links once, leaves out what is hidden.

    Files in formats that nobody here can decode (`.m4a`, …) are listed too, so that they end up counted as skipped.

    Args:
        root: Folder of the corpus.
        subfolders: Folders below the root to which the walk is limited; empty for all.

    Yields:
        Paths below `root`.

    Raises:
        ValueError: If the root or one of the sub-folders does not exist.
    """
    if not root.is_dir():
        raise ValueError(f"the corpus folder {root} does not exist: give input=FOLDER with recordings")
    seen: set[str] = set()
    for start in [root / name for name in subfolders] or [root]:
        if not start.is_dir():
            raise ValueError(f"the sub-folder {start.name} does not exist in {root}: correct subfolders or leave it empty")
        for folder, folders, files in os.walk(start, followlinks=True):
            real = os.path.realpath(folder)
            folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
            if real in seen:
                continue
            seen.add(real)
            for name in sorted(files):
                suffix = Path(name).suffix.lower()
                if not name.startswith(".") and (suffix in EXTENSIONS or suffix in UNREADABLE_EXTENSIONS):
                    yield Path(folder, name)
