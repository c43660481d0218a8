"""JSON records with a checksum of themselves inside, so that a value that changed on the disk is noticed and not used."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openwavlm.data.files import read_json

CHECKSUM = "seal"


def read_sealed(path: Path, *, remedy: str, newest: int | None = None, sealed_since: int | None = None) -> dict[str, Any]:
    """Reads a file that holds one JSON object and, where it carries a checksum of itself, compares that.

    Args:
        path: The file.
        remedy: Last part of the error's sentence: the way out.
        newest: The newest `format_version` that the caller reads: of a newer one, which it refuses, the checksum is not compared.
        sealed_since: The `format_version` from which on the checksum must be there; None if it may always be absent.

    Returns:
        The object without its checksum.

    Raises:
        ValueError: If there is no such file, it is not one JSON object, or its checksum differs.
        OSError: If the machine cannot read it; names the file.
    """
    content = read_json(path, remedy=remedy).values
    version = content.get("format_version")
    has_seal, seal = CHECKSUM in content, content.pop(CHECKSUM, None)
    if newest is not None and isinstance(version, int) and version > newest:
        return content
    if has_seal and seal != checksum_of(content):
        raise ValueError(f"{path} is damaged (its checksum differs): {remedy}")
    if not has_seal and sealed_since is not None and isinstance(version, int) and version >= sealed_since:
        raise ValueError(f"{path} is damaged (it has no checksum): {remedy}")
    return content


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the checksum of itself that `read_sealed` compares."""
    return {**content, CHECKSUM: checksum_of(content)}


def checksum_of(content: Mapping[str, Any]) -> str:
    """Checksum of an object's values, independent of the order of its keys and of white space."""
    values = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
