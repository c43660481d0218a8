"""Imports fairseq's label files as a labelling: `openwavlm import-labels --help`."""

from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.labels.import_labels import import_labels
from openwavlm.runs.compose import paths


@command("prep/import_labels")
def main(config: DictConfig) -> None:
    """Runs `import_labels`."""
    import_labels(
        Path(config.shards),
        Path(config.output),
        tsv=paths(config.tsv),
        km=paths(config.km),
        dictionary=Path(config.dictionary),
        label_rate=config.label_rate,
        decimate=config.decimate,
        codebook=Path(config.codebook) if config.codebook else None,
        max_missing_rate=config.max_missing_rate,
    )
