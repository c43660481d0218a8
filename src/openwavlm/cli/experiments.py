"""`openwavlm experiments`: the presets of `conf/experiment/`, each with its purpose."""

from openwavlm.cli.help import presets


def main() -> None:
    """The command `openwavlm experiments`."""
    print("\n".join(presets()))
