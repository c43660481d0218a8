"""Sealed JSON files (`sealed.py`) of which only the newest format is read, as shard sets hold them."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from openwavlm.data.atomic import write_json
from openwavlm.data.files import Fields, read_json
from openwavlm.data.sealed import CHECKSUM, checksum_of, sealed


def write_sealed(path: Path, content: Mapping[str, Any], *, indent: int | None = 1) -> None:
    """Writes an object and its seal as JSON, atomically; equal objects give equal bytes."""
    write_json(path, sealed(content), indent=indent)


def read_sealed(path: Path, *, newest: int, what: str, upgrade: str, remedy: str) -> Fields:
    """Reads an object of the newest format and compares it with its seal.

    Args:
        path: The file.
        newest: The only `format_version` that is read.
        what: Name of the format in errors: `{what} has format …`.
        upgrade: Command that brings an older format to the newest one.
        remedy: Last part of the error's sentence where the file is damaged: the way out.

    Returns:
        Its fields but the seal.

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
