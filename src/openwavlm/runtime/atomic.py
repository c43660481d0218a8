"""Files that appear whole or not at all: written beside their place, synchronised, renamed."""

import fcntl
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from openwavlm.runtime.resources import naming, retried


def sync_folder(folder: Path) -> None:
    """Makes the renames inside a folder durable."""
    with naming(folder):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its name only when the block ends without an error.

    The temporary name carries the process id, so that a process that outlives its parent cannot disturb its successor.

    Args:
        path: Where the file shall be; its folder is made.

    Yields:
        Binary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def remove_temporaries(folder: Path, is_own: Callable[[str], object]) -> None:
    """Removes what killed writers of `atomic_file` left behind; files that other programs called `.tmp` stay.

    Args:
        folder: Where to look, in sub-folders too.
        is_own: Whether a path, relative to the folder, is one of a file that they wrote and that no other process is writing.
    """
    for path in sorted(folder.rglob("*.tmp")):
        name = re.fullmatch(r"(.+)\.\d+\.tmp", path.relative_to(folder).as_posix())
        if name and is_own(name[1]) and path.is_file():
            path.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a small file whole or not at all.

    Raises:
        OSError: If it cannot be written; it names the file.
    """
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes a value as JSON, atomically; equal values give equal bytes."""
    with atomic_file(path) as file:
        file.write((json.dumps(value, indent=indent, sort_keys=True) + "\n").encode())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    return digest_of(path, "sha256")


def digest_of(path: Path, digest: str | Callable[[], Any]) -> str:
    """Checksum of a file by an algorithm of hashlib, in hexadecimal digits.

    Raises:
        OSError: If it cannot be read; with its name.
    """

    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, digest).hexdigest()

    return retried(read, path)


@contextmanager
def writer_lock(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keeps a second writer out of a folder for the length of the block; the lock dies with the process.

    Args:
        folder: What is written to; made if it does not exist.
        shared: True for writers of disjoint parts, which exclude only an exclusive writer.

    Raises:
        ValueError: If somebody else holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is writing to {folder}: wait until it ends, or stop it") from error
        yield


@contextmanager
def taking_turns(folder: Path) -> Iterator[None]:
    """Lets one process after another through the block, for writers that share a folder; the lock dies with the process.

    Args:
        folder: What they write to.
    """
    with (folder / ".turn").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
