"""Finds the audio files of a corpus folder and counts all other files by kind."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from openwavlm.audio.formats import EXTENSIONS, UNREADABLE_EXTENSIONS
from openwavlm.runtime.resources import check_of_the_file


@dataclass
class FolderFiles:
    """Files of a folder and its sub-folders; each is in exactly one of `audio` and `ignored`.

    Attributes:
        audio: Files with the suffix of an audio format, those of a folder before those of its sub-folders, both sorted.
        ignored: Number of all other files by lower-case suffix, or by `hidden`, `no suffix` and `special file`.
        special: FIFOs, sockets and devices without an audio suffix; they are never opened.
        linked_again: Omitted folders, which are links to a folder that is listed already.
    """

    audio: list[Path] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    special: list[Path] = field(default_factory=list)
    linked_again: list[Path] = field(default_factory=list)


def find_files(root: Path, subfolders: Sequence[str] = ()) -> FolderFiles:
    """Walks a corpus, or these sub-folders of it, follows each link to a folder once, and opens no file.

    Files of unsupported formats, and special files with an audio suffix, are among `audio`: preparation lists them by name as skipped.

    Raises:
        ValueError: If the root or one of the sub-folders does not exist, or a folder cannot be listed.
    """
    if root.exists() and not root.is_dir():
        raise ValueError(
            f"a corpus is a folder, but {root} is a file: give its folder, or layout=manifest for a table of utterances"
        )
    if not root.is_dir():
        raise ValueError(f"the corpus folder {root} does not exist: give input=FOLDER with recordings")
    found = FolderFiles()
    seen: set[str] = set()
    for start in [root / name for name in subfolders] or [root]:
        if not start.is_dir():
            raise ValueError(f"the sub-folder {start.name} does not exist in {root}: change subfolders or leave it empty")
        folders = [(start, False)]
        while folders:
            folder, hidden = folders.pop()
            real = os.path.realpath(folder)
            if real in seen:
                if folder.is_symlink():
                    found.linked_again.append(folder)
                continue
            seen.add(real)
            folders += reversed(_sort_entries(found, folder, hidden=hidden))
    return found


def _sort_entries(found: FolderFiles, folder: Path, *, hidden: bool) -> list[tuple[Path, bool]]:
    """Adds the files of one folder to `found`; returns its sub-folders, each with True if it is hidden."""
    folders = []
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        check_of_the_file(error, folder)
        raise ValueError(
            f"the folder {folder} cannot be listed ({error.strerror}): make it readable, or choose others with subfolders"
        ) from error
    for entry in entries:
        path, kind = Path(entry.path), Path(entry.name).suffix.lower()
        is_hidden = hidden or entry.name.startswith(".")
        if _is(entry.is_dir):
            folders.append((path, is_hidden))
        elif is_hidden:
            found.ignored["hidden"] += 1
        elif kind in EXTENSIONS or kind in UNREADABLE_EXTENSIONS:
            found.audio.append(path)
        elif not (_is(entry.is_file) or entry.is_symlink()):
            found.special.append(path)
            found.ignored["special file"] += 1
        else:
            found.ignored[kind or "no suffix"] += 1
    return folders


def _is(test: Callable[[], bool]) -> bool:
    try:
        return test()
    except OSError as error:  # A link that points to itself.
        check_of_the_file(error)
        return False


def counted(numbers: Counter[str] | dict[str, int], most: int = 10) -> str:
    """Formats numbers by name, the largest first: `.txt 12, .json 3 and 40 of 7 other kinds`."""
    ordered = sorted(numbers.items(), key=lambda pair: (-pair[1], pair[0]))
    text = ", ".join(f"{name} {number}" for name, number in ordered[:most])
    rest = ordered[most:]
    return text + (f" and {sum(number for _, number in rest)} of {len(rest)} other kinds" if rest else "")
