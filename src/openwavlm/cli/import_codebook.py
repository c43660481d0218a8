"""Imports a published codebook: `openwavlm import-codebook --help`."""

from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.labels.import_codebook import import_codebook


@command("prep/import_codebook")
def main(config: DictConfig) -> None:
    """Runs `import_codebook`."""
    import_codebook(Path(config.input), **arguments_of(import_codebook, config))
