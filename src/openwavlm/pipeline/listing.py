"""Fingerprint of a file or folder of a user, by which a stage notices changes."""

import hashlib
from pathlib import Path


def fingerprint(path: Path) -> str:
    """Hash of a file's content; of a folder, of the names, sizes and times of all files below it."""
    if path.is_file():
        with path.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()[:16]
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")):
        if file.is_file():
            status = file.stat()
            digest.update(
                f"{file.relative_to(path)}\t{status.st_size}\t{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape")
            )
    return digest.hexdigest()[:16]
