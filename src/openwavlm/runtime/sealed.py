"""JSON records with a checksum of themselves, so that a value that changed on the disk is noticed."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openwavlm.runtime.atomic import write_json
from openwavlm.runtime.files import read_json

CHECKSUM = "seal"


def read_sealed(path: Path, *, remedy: str, newest: int | None = None, sealed_since: int | None = None) -> dict[str, Any]:
    """Reads a JSON object and compares it with its checksum, if it has one; returns it without the checksum.

    Args:
        path: The file.
        remedy: Last part of an error, as in `files`.
        newest: The newest `format_version` that the caller reads; the checksum of a newer one, which it refuses, is not compared.
        sealed_since: The first `format_version` that must have a checksum; None if it is always optional.

    Raises:
        ValueError: If the file is missing, is not one JSON object, or its checksum differs.
        OSError: If the machine fails to read the file.
    """
    content = read_json(path, remedy=remedy).values
    version = content.get("format_version")
    version = version if isinstance(version, int) else 0
    has_seal, seal = CHECKSUM in content, content.pop(CHECKSUM, None)
    if newest is not None and version > newest:
        return content
    if has_seal and seal != checksum_of(content):
        raise ValueError(f"{path} is damaged (its checksum differs): {remedy}")
    if not has_seal and sealed_since is not None and version >= sealed_since:
        raise ValueError(f"{path} is damaged (it has no checksum): {remedy}")
    return content


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its checksum, which `read_sealed` compares."""
    return {**content, CHECKSUM: checksum_of(content)}


def write_sealed(path: Path, content: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Writes an object and its checksum as JSON, atomically; equal objects give equal bytes."""
    write_json(path, sealed(content), indent=indent)


def checksum_of(content: Mapping[str, Any]) -> str:
    """Checksum of an object's values, independent of the order of its keys and of white space."""
    values = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
