"""`openwavlm export`: a run's model in the format of Hugging Face, Microsoft, torchaudio, s3prl or ONNX."""

import logging

from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.runs.export import export_run
from openwavlm.runs.export_readme import loaded_by

log = logging.getLogger(__name__)


@command("export")
def main(config: DictConfig) -> None:
    """The command `openwavlm export`."""
    output = export_run(**arguments_of(export_run, config))
    log.info("wrote %s: %s loads it", output, loaded_by(config.format, str(output)))
