"""`openwavlm upgrade`: shard sets, labels and runs of format 1 in the present formats."""

import sys
from pathlib import Path

from openwavlm.cli.main import USAGE
from openwavlm.runs.upgrade import upgrade
from openwavlm.runtime.resources import explained


def main() -> None:
    """Runs the command on the folders of the command line; status 2 and one sentence if one is refused."""
    words = sys.argv[1:]
    if not words or any(word.startswith("-") for word in words):
        print(USAGE["upgrade"], file=sys.stderr)
        raise SystemExit(2)
    try:
        for folder, changed in upgrade([Path(word) for word in words]).items():
            print(f"{folder}: {'upgraded' if changed else 'has the present format already'}")
    except (ValueError, OSError) as error:
        print(f"error: {explained(error, debug_key=False)}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
