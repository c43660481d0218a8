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
    """Opens a binary file, and renames it to `path` when the block ends without an error; makes its folder."""
    # A process that outlives its parent must not disturb its successor, so the name has the process id.
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
    """Removes temporary files that killed writers left below a folder, if `is_own` is true of their relative path without the suffix."""
    for path in sorted(folder.rglob("*.tmp")):
        name = re.fullmatch(r"(.+)\.\d+\.tmp", path.relative_to(folder).as_posix())
        if name and is_own(name[1]) and path.is_file():
            path.unlink(missing_ok=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a small file whole or not at all; an `OSError` names it."""
    with atomic_file(path) as file:
        file.write(data)


def write_json(path: Path, value: Any, *, indent: int | None = 1) -> None:
    """Writes a value as JSON, atomically; equal values give equal bytes."""
    write_atomically(path, (json.dumps(value, indent=indent, sort_keys=True) + "\n").encode())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hexadecimal digits."""
    return digest_of(path, "sha256")


def digest_of(path: Path, digest: str | Callable[[], Any]) -> str:
    """Checksum of a file by an algorithm of hashlib, in hexadecimal digits; an `OSError` names the file."""

    def read() -> str:
        with path.open("rb") as file:
            return hashlib.file_digest(file, digest).hexdigest()

    return retried(read, path)


@contextmanager
def writer_lock(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Makes a folder and locks it against other writers during the block; the lock ends with the process.

    With `shared`, for writers of disjoint parts, it excludes only an exclusive writer.

    Raises:
        ValueError: If another process holds the lock.
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
    """Lets one process at a time run the block, for writers that share a folder; the lock ends with the process."""
    with (folder / ".turn").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
