"""Imports a published codebook: `openwavlm import-codebook --help`."""

from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.labels.import_codebook import import_codebook


@command("prep/import_codebook")
def main(config: DictConfig) -> None:
    """Runs `import_codebook`."""
    import_codebook(
        Path(config.input),
        Path(config.output),
        trust=config.trust,
        features=config.features,
        teacher=Path(config.teacher) if config.teacher else None,
        layer=config.layer,
    )
