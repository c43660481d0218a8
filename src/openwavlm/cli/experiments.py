"""`openwavlm experiments`: the presets of `conf/experiment/`, each with its purpose."""

import sys

from openwavlm.cli.help import presets
from openwavlm.cli.main import USAGE


def main() -> None:
    """The command `openwavlm experiments`."""
    if sys.argv[1:]:
        print(USAGE["experiments"], file=sys.stderr)
        raise SystemExit(2)
    print("\n".join(presets()))
