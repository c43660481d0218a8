"""What lies in a file or folder that a user gave, so that a stage notices when it changed."""

import hashlib
from collections.abc import Iterable
from pathlib import Path


def fingerprint(path: Path) -> str:
    """Hash of a file's content; of a folder, of the names, sizes and times of all files below it."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return _of_files(path, (file for file in sorted(path.rglob("*")) if file.is_file()))


def _of_files(root: Path, files: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(root)}\t{status.st_size}\t{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]
