"""`openwavlm replay`: the batches of one update, built again."""

import logging

from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.runs.replay import replay

log = logging.getLogger(__name__)


@command("replay")
def main(config: DictConfig) -> None:
    """The command `openwavlm replay`."""
    for key in ("step", "rows"):
        if not isinstance(config[key], int) or isinstance(config[key], bool):
            raise ValueError(f"{key} must be a whole number, but is {config[key]!r}")
    output = replay(**arguments_of(replay, config))
    log.info("wrote %s: open page.html in a browser; batch.json has every row", output)
