"""Fits a k-means codebook: `python data_prep/fit_kmeans.py --help`."""

import logging
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.labels.fit import fit_codebook
from openwavlm.runs.compose import plain
from openwavlm.training.ranks import join_processes

# One process can have hours of features left when another has its own; one that dies is noticed at once.
_PATIENCE = timedelta(days=7)


@command("prep/fit_kmeans")
def main(config: DictConfig) -> None:
    """Runs `fit_codebook` with the configuration's values, as one of the processes of torchrun or srun if they started it."""
    rank, world_size = join_processes(_PATIENCE)
    if rank:
        logging.getLogger("openwavlm").setLevel(logging.ERROR)
    shards = [config.shards] if isinstance(config.shards, str) else list(config.shards)
    fit_codebook(
        [Path(path) for path in shards],
        Path(config.output),
        features=config.features,
        teacher=Path(config.teacher) if config.teacher else None,
        layer=config.layer,
        feature_norm=config.feature_norm,
        clusters=config.clusters,
        min_frames_per_cluster=config.min_frames_per_cluster,
        sample_hours=config.sample_hours,
        source_weights=plain(config)["source_weights"],
        max_frames=config.max_frames,
        max_memory_gib=config.max_memory_gib,
        seed=config.seed,
        validation_share=config.validation_share,
        split_seed=config.split_seed,
        engine=config.engine,
        n_init=config.n_init,
        iterations=config.iterations,
        tolerance=config.tolerance,
        device=config.device,
        workers=config.workers,
        max_skip_rate=config.max_skip_rate,
    )
    if world_size > 1:
        dist.destroy_process_group()
