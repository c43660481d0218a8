"""`openwavlm.json` of an exported folder: where the model comes from, and the checksums of the files beside it."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from openwavlm.runtime.atomic import digest_of
from openwavlm.runtime.sealed import read_sealed, sealed

ABOUT = "openwavlm.json"


def about_bytes(content: Mapping[str, Any], files: Iterable[Path]) -> bytes:
    """The bytes of `openwavlm.json`.

    Args:
        content: What it says of the model.
        files: The files of the model, as they were written.
    """
    checksums = {file.name: _checksum(file) for file in files}
    return (json.dumps(sealed({**content, "files": checksums}), indent=1) + "\n").encode()


def read_about(folder: Path) -> dict[str, Any] | None:
    """What `openwavlm.json` says, None if there is none.

    Raises:
        ValueError: If it is damaged.
    """
    path = folder / ABOUT
    if not path.exists():
        return None
    cure = "export the model again, or copy its folder again"
    content = read_sealed(path, remedy=cure)
    kinds = {"files": dict, "fingerprints": dict, "trained_on": dict | None}
    wrong = [name for name, kind in kinds.items() if name in content and not isinstance(content[name], kind)]
    if wrong or not all(isinstance(checksum, str) for checksum in content.get("files", {}).values()):
        raise ValueError(f"{path} is damaged ({(wrong or ['files'])[0]} is not what an export writes): {cure}")
    return content


def check_files(folder: Path) -> bool:
    """Compares the files of an exported model with the checksums beside them.

    Returns:
        Whether there are any checksums.

    Raises:
        ValueError: If a file differs or is missing.
    """
    files = (read_about(folder) or {}).get("files", {})
    for name, expected in files.items():
        file = folder / Path(name).name
        if not file.is_file():
            raise ValueError(
                f"{file} is missing, but {ABOUT} beside it names it: export the model again, or copy its folder again"
            )
        if _checksum(file) != expected:
            raise ValueError(
                f"{file} is not the file that was exported ({ABOUT} beside it has another checksum): export the model again, or copy its "
                f"folder again; if the file was changed on purpose, delete {folder / ABOUT}"
            )
    return bool(files)


def _checksum(file: Path) -> str:
    return digest_of(file, lambda: hashlib.blake2b(digest_size=16))
