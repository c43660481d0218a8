"""`openwavlm tune`: the settings that train fastest on this machine."""

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.planning.tune import tune
from openwavlm.runs.compose import plain


@command("tune")
def main(config: DictConfig) -> None:
    """The command `openwavlm tune`."""
    tune(plain(config))
