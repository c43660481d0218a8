"""`openwavlm release`: a run's model with head, codebooks and a model card."""

import logging

from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.downstream.release import release_run

log = logging.getLogger(__name__)


@command("release")
def main(config: DictConfig) -> None:
    """The command `openwavlm release`."""
    log.info("wrote %s: README.md is its model card", release_run(**arguments_of(release_run, config)))
