"""Fits a k-means codebook: `openwavlm fit-kmeans --help`."""

import logging
from datetime import timedelta

import torch.distributed as dist
from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.labels.fit import fit_codebook
from openwavlm.training.ranks import join_processes

# A process may wait hours for the features of another one; the death of a process is noticed at once.
_PATIENCE = timedelta(days=7)


@command("prep/fit_kmeans")
def main(config: DictConfig) -> None:
    """Runs `fit_codebook`, in each process of torchrun or srun if one of them started it."""
    rank, world_size = join_processes(_PATIENCE)
    if rank:
        logging.getLogger("openwavlm").setLevel(logging.ERROR)
    fit_codebook(**arguments_of(fit_codebook, config))
    if world_size > 1:
        dist.destroy_process_group()
