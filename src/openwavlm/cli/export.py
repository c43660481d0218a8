"""`openwavlm export`: a run's model in the format of Hugging Face, Microsoft or torchaudio."""

import logging

from omegaconf import DictConfig

from openwavlm.checkpoints.load import SINGLE_FILE
from openwavlm.checkpoints.torchaudio import sidecar_of
from openwavlm.cli.app import arguments_of, command
from openwavlm.runs.export import FORMATS, export_run

log = logging.getLogger(__name__)


@command("export")
def main(config: DictConfig) -> None:
    """The command `openwavlm export`."""
    output = export_run(**arguments_of(export_run, config))
    file = output / SINGLE_FILE
    loaded_by = FORMATS[config.format].format(folder=str(output), weights=str(file), arguments=str(sidecar_of(file)))
    log.info("wrote %s: %s loads it", output, loaded_by)
