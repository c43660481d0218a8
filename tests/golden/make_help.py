"""Writes `help.txt`, the `--help` of every command: `python tests/golden/make_help.py`."""

from pathlib import Path

from openwavlm.cli.help import config_file, help_text
from openwavlm.cli.main import COMMANDS

FILE = Path(__file__).with_name("help.txt")


def all_help() -> str:
    """The help of every command that takes keys, one after another, at a width of 100."""
    texts = [help_text(name, purpose) for name, purpose in COMMANDS.items() if config_file(name) is not None]
    return f"\n{'=' * 100}\n".join(texts)


if __name__ == "__main__":
    FILE.write_text(all_help())
