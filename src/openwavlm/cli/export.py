"""`openwavlm export`: a run's model in the format of Hugging Face, Microsoft, torchaudio, s3prl or ONNX; a fine-tuning with its head."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.downstream import symbols
from openwavlm.downstream.export import export_task
from openwavlm.runs.export import export_run
from openwavlm.runs.export_readme import loaded_by

log = logging.getLogger(__name__)


@command("export")
def main(config: DictConfig) -> None:
    """The command `openwavlm export`."""
    arguments = arguments_of(export_run, config)
    if (Path(str(config.run)) / symbols.NAME).is_file():
        log.info("wrote %s: README.md shows how to use it", export_task(**arguments))
        return
    output = export_run(**arguments)
    log.info("wrote %s: %s loads it", output, loaded_by(config.format, str(output)))
