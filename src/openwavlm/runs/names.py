"""Names and paths of a command line as text, and the folder of a run's name.

YAML and Hydra read `1e3` as 1000.0, `007` as 7 and `true` as a truth value: quotes around them keep the letters.
"""

import os
import re
from pathlib import Path

_TEXT = (
    *("name", "source", "title", "project", "partition", "language", "subfolders", "mlflow"),
    *("input", "output", "shards", "labels", "codebook", "encoder", "teacher", "carry_from", "run", "noise", "alignments"),
    *("init_from", "branch_from", "fit", "train", "dev", "test", "tsv", "km", "dictionary", "json", "folder"),
)
_LONGEST_PART, _LONGEST = 255, 1024  # ext4, XFS, NFS, APFS; of a path Linux allows 4,096 and macOS 1,024
_NUMBER = r"[+-]?(?:\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(?:e[+-]?\d[\d_]*)?|[+-]?inf|nan|true|false"
_WORD = re.compile(r"(?P<key>\+{0,2}[^=~'\"]+)=(?P<value>.*)", re.DOTALL)
_LISTED = re.compile(rf"(?<![^\[,])(\s*)({_NUMBER})(\s*)(?=[\],]|$)", re.IGNORECASE)
_OF_GROUP = re.compile(rf"\b({'|'.join(_TEXT)})(\s*:\s*)({_NUMBER})(?=\s*[,}}])", re.IGNORECASE)


def as_text(word: str) -> str:
    """An override or a sweep, quoted if its key is text and Hydra would read another type: `name='1e3'` for `name=1e3`."""
    found = _WORD.fullmatch(word)
    if found is None:
        return word
    key, value = found["key"], found["value"]
    *groups, last = key.lstrip("+").split("@")[0].split(".")
    if "'" in value or '"' in value or "${" in value:
        return word
    if value.startswith("{"):
        return key + "=" + _OF_GROUP.sub(r"\1\2'\3'", value)
    if last not in _TEXT and groups[-1:] != ["columns"]:
        return word
    if last == "name" and not groups and value.lower() == "null":
        return f"{key}='{value}'"  # of the other keys null means none
    return key + "=" + _LISTED.sub(r"\1'\2'\3", value)


def run_folder(name: object) -> Path:
    """`runs/NAME`; a `ValueError` if the name leads out of `runs/` or cannot be a folder's name everywhere."""
    text = str(name)
    parts = text.split("/") if isinstance(name, str | int | float) else [""]
    if any(not part.strip() or part.endswith((".", " ")) or part.startswith(" ") for part in parts) or not text.isprintable():
        raise ValueError(
            f"name must be the name of a folder below runs/, without a leading /, .. or a dot or blank at its end, but is {text!r}: give "
            "name=NAME"
        )
    if any(len(os.fsencode(part)) > _LONGEST_PART for part in parts) or len(os.fsencode(text)) > _LONGEST:
        raise ValueError(
            f"name must have at most {_LONGEST_PART} bytes between two / and {_LONGEST} in all, the limits of file systems, but has "
            f"{len(os.fsencode(text))}: shorten it"
        )
    return Path("runs", *parts)
