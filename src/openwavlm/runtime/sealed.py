"""JSON records with a checksum of themselves inside, so that a value that changed on the disk is noticed and not used."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from openwavlm.runtime.atomic import write_json
from openwavlm.runtime.files import Fields, read_json

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


def read_newest(path: Path, *, newest: int, what: str, upgrade: str, remedy: str) -> Fields:
    """Reads an object of a format of which only the newest version is read, and compares it with its checksum.

    Args:
        path: The file.
        newest: The only `format_version` that is read.
        what: Name of the format in errors: `{what} has format …`.
        upgrade: Command that brings an older format to the newest one.
        remedy: Last part of the error's sentence where the file is damaged: the way out.

    Returns:
        Its fields without the checksum.

    Raises:
        ValueError: If the file is missing or damaged, or its format is newer or older.
        OSError: If the machine cannot read it; names the file.
    """
    found = read_json(path, remedy=remedy)
    version = found.integer("format_version", 1)
    if version > newest:
        raise ValueError(f"{what} has format {version}, but this version of OpenWavLM reads up to {newest}: update OpenWavLM")
    if version < newest:
        raise ValueError(
            f"{what} has format {version}, whose speakers and other names have no checksum: bring it to format {newest}, audio "
            f"untouched, by `{upgrade}`"
        )
    if found.text(CHECKSUM) != checksum_of(found.values):
        raise ValueError(f"{path} is damaged (its content does not have its checksum): {remedy}")
    return replace(found, values={name: value for name, value in found.values.items() if name != CHECKSUM})


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The object with the checksum of itself that `read_sealed` compares."""
    return {**content, CHECKSUM: checksum_of(content)}


def write_sealed(path: Path, content: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Writes an object and its checksum as JSON, atomically; equal objects give equal bytes."""
    write_json(path, sealed(content), indent=indent)


def checksum_of(content: Mapping[str, Any]) -> str:
    """Checksum of an object's values, independent of the order of its keys and of white space."""
    values = {key: value for key, value in content.items() if key != CHECKSUM}
    return hashlib.blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=16).hexdigest()
