"""`openwavlm.json` of an exported folder: origin of the model, and checksums of the files beside it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openwavlm.runtime.atomic import digest_of
from openwavlm.runtime.sealed import read_sealed, sealed

ABOUT = "openwavlm.json"
_AGAIN = "export the model again, or copy its folder again"


def about_bytes(content: Mapping[str, Any], files: Iterable[Path]) -> bytes:
    """Bytes of `openwavlm.json`: `content` and the checksums of the model's files."""
    checksums = {file.name: file_checksum(file) for file in files}
    return (json.dumps(sealed({**content, "files": checksums}), indent=1) + "\n").encode()


def read_about(folder: Path) -> dict[str, Any] | None:
    """Content of `openwavlm.json`, None without one; a damaged one is a ValueError."""
    path = folder / ABOUT
    if not path.exists():
        return None
    content = read_sealed(path, remedy=_AGAIN)
    kinds = {"files": dict, "fingerprints": dict, "trained_on": dict | None, "label_embeddings": list}
    wrong = [name for name, kind in kinds.items() if name in content and not isinstance(content[name], kind)]
    if wrong or not all(isinstance(checksum, str) for checksum in content.get("files", {}).values()):
        raise ValueError(f"{path} is damaged ({(wrong or ['files'])[0]} has another type than in an export): {_AGAIN}")
    return content


def check_files(folder: Path) -> bool:
    """Compares the files of an exported model with the checksums beside them; returns False if there are none.

    Raises:
        ValueError: If a file differs or is missing.
    """
    files = (read_about(folder) or {}).get("files", {})
    for name, expected in files.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise ValueError(f"{file} is missing, but {ABOUT} beside it names it: {_AGAIN}")
        if file_checksum(file) != expected:
            raise ValueError(
                f"{file} is not the exported file ({ABOUT} has another checksum): {_AGAIN}; if you changed it, delete {folder / ABOUT}"
            )
    return bool(files)


def file_checksum(file: Path) -> str:
    """BLAKE2b checksum of a file, as hexadecimal text."""
    return digest_of(file, lambda: hashlib.blake2b(digest_size=16))
