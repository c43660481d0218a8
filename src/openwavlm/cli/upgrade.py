"""`openwavlm upgrade`: shard sets, labels and runs of format 1 in the present formats."""

import sys
from pathlib import Path

from openwavlm.runs.upgrade import upgrade
from openwavlm.runtime.resources import explained

_USAGE = """usage: openwavlm upgrade PATH ...

Brings shard sets, labels, codebooks and runs of format 1 to the present formats, in place; audio, labels and weights stay as they are.
In any other folder (of openwavlm iterate, data/, runs/) all of these below it are upgraded. The shard sets and labels of a run
are upgraded with it. Labels and codebooks need their shard sets: name them on the same line, as in
`openwavlm upgrade data/shards/train data/labels/km500`. After a kill, run the same command again.
"""


def main() -> None:
    """Runs the command on the folders of the command line; status 2 and one sentence if one is refused."""
    words = sys.argv[1:]
    if not words or any(word.startswith("-") for word in words):
        helping = bool({"-h", "--help"} & set(words))
        print(_USAGE, end="", file=sys.stdout if helping else sys.stderr)
        raise SystemExit(0 if helping else 2)
    try:
        for folder, changed in upgrade([Path(word) for word in words]).items():
            print(f"{folder}: {'upgraded' if changed else 'has the present format already'}")
    except (ValueError, OSError) as error:
        print(f"error: {explained(error, debug_key=False)}", file=sys.stderr, flush=True)
        raise SystemExit(2) from error
