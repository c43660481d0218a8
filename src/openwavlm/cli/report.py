"""`openwavlm report`: the page of one or several runs."""

import logging

from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.runs.compose import paths
from openwavlm.runs.gather import report_runs

log = logging.getLogger(__name__)


@command("report")
def main(config: DictConfig) -> None:
    """The command `openwavlm report`."""
    page = report_runs(paths(config.run), **arguments_of(report_runs, config))
    log.info("wrote %s: open it in a browser", page)
