"""Fits a k-means codebook: `openwavlm fit-kmeans --help`."""

import logging
from datetime import timedelta
from inspect import signature
from pathlib import Path

import torch.distributed as dist
from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.labels.fit import fit_codebook
from openwavlm.runs.compose import paths, plain
from openwavlm.training.ranks import join_processes

# A process may wait hours for the features of another one; the death of a process is noticed at once.
_PATIENCE = timedelta(days=7)


@command("prep/fit_kmeans")
def main(config: DictConfig) -> None:
    """Runs `fit_codebook`, in each process of torchrun or srun if one of them started it."""
    rank, world_size = join_processes(_PATIENCE)
    if rank:
        logging.getLogger("openwavlm").setLevel(logging.ERROR)
    known = signature(fit_codebook).parameters
    options = {name: value for name, value in plain(config).items() if name in known}
    teacher = Path(config.teacher) if config.teacher else None
    fit_codebook(**options | {"shards": paths(config.shards), "output": Path(config.output), "teacher": teacher})
    if world_size > 1:
        dist.destroy_process_group()
