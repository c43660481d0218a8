"""Makes a labelling of fairseq's label files: `python data_prep/import_labels.py --help`."""

from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.labels.import_labels import import_labels


@command("prep/import_labels")
def main(config: DictConfig) -> None:
    """Runs `import_labels` with the configuration's values."""
    tsv, km = ([value] if isinstance(value, str) else list(value) for value in (config.tsv, config.km))
    import_labels(
        Path(config.shards),
        Path(config.output),
        tsv=[Path(path) for path in tsv],
        km=[Path(path) for path in km],
        dictionary=Path(config.dictionary),
        label_rate=config.label_rate,
        decimate=config.decimate,
        codebook=Path(config.codebook) if config.codebook else None,
        max_missing_rate=config.max_missing_rate,
    )
