"""Imports fairseq's label files as a labelling: `openwavlm import-labels --help`."""

from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.labels.import_labels import import_labels


@command("prep/import_labels")
def main(config: DictConfig) -> None:
    """Runs `import_labels`."""
    import_labels(**arguments_of(import_labels, config))
