"""Fits a k-means codebook: `python data_prep/fit_kmeans.py --help`."""

from pathlib import Path

from omegaconf import DictConfig

from openwavlm.cli import command
from openwavlm.labelling.fit import fit_codebook


@command("prep/fit_kmeans")
def main(config: DictConfig) -> None:
    """Runs `fit_codebook` with the configuration's values."""
    shards = [config.shards] if isinstance(config.shards, str) else list(config.shards)
    fit_codebook(
        [Path(path) for path in shards],
        Path(config.output),
        features=config.features,
        teacher=Path(config.teacher) if config.teacher else None,
        layer=config.layer,
        feature_norm=config.feature_norm,
        clusters=config.clusters,
        sample_hours=config.sample_hours,
        max_frames=config.max_frames,
        seed=config.seed,
        validation_share=config.validation_share,
        split_seed=config.split_seed,
        n_init=config.n_init,
        workers=config.workers,
        max_skip_rate=config.max_skip_rate,
    )


if __name__ == "__main__":
    main()
