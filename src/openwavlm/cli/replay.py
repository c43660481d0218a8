"""`openwavlm replay`: the batches of one update, built again."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.runs.replay import replay

log = logging.getLogger(__name__)


@command("replay")
def main(config: DictConfig) -> None:
    """The command `openwavlm replay`."""
    for key in ("step", "rows"):
        if not isinstance(config[key], int) or isinstance(config[key], bool):
            raise ValueError(f"{key} must be a whole number, but is {config[key]!r}")
    run = Path(str(config.run))
    output = replay(run, config.step, rows=config.rows, output=Path(config.output) if config.output else None)
    log.info("wrote %s: open page.html in a browser; batch.json has every row", output)
