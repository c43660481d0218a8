"""Makes a codebook of a published one: `python data_prep/import_codebook.py --help`."""

from openwavlm.interrupt import end_at_interrupt

if __name__ == "__main__":
    end_at_interrupt()  # before the seconds that the imports take


from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli import command
from openwavlm.labelling.import_codebook import import_codebook


@command("prep/import_codebook")
def main(config: DictConfig) -> None:
    """Runs `import_codebook` with the configuration's values."""
    import_codebook(
        Path(config.input),
        Path(config.output),
        trust=config.trust,
        features=config.features,
        teacher=Path(config.teacher) if config.teacher else None,
        layer=config.layer,
    )


if __name__ == "__main__":
    main()
