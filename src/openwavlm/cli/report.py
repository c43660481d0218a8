"""`openwavlm report`: the page of one or several runs."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.runs.gather import report_runs

log = logging.getLogger(__name__)


@command("report")
def main(config: DictConfig) -> None:
    """The command `openwavlm report`."""
    named = config.run if not isinstance(config.run, str) else [config.run]
    page = report_runs(
        [Path(str(run)) for run in named],
        Path(config.output) if config.output else None,
        title=config.title,
        micro_batches=int(config.micro_batches),
    )
    log.info("wrote %s: open it in a browser", page)
