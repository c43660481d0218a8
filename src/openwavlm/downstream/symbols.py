"""`symbols.json` of a fine-tuning: its task, and the output symbols or classes by number."""

import json
from pathlib import Path

from openwavlm.runtime.files import read_json
from openwavlm.runtime.sealed import write_sealed

NAME = "symbols.json"
FORMAT_VERSION = 1


def write_symbols(directory: Path, task: str, symbols: tuple[str, ...]) -> None:
    """Writes the file."""
    write_sealed(directory / NAME, {"format_version": FORMAT_VERSION, "task": task, "symbols": json.dumps(symbols)})


def read_symbols(directory: Path) -> tuple[str, ...]:
    """The symbols of a fine-tuning, by number.

    Raises:
        ValueError: If the folder is no fine-tuning, or the file is damaged.
    """
    path = directory / NAME
    if not path.is_file():
        raise ValueError(f"{directory} has no {NAME}: name a run of openwavlm finetune")
    again = "give the command of the run again, which writes it anew"
    return tuple(json.loads(read_json(path, remedy=again).text("symbols")))
