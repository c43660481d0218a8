"""Lightning's trainer of a run, and the device of its step."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy

from openwavlm.training.callbacks import StepBoundary
from openwavlm.training.checkpoint import AtomicCheckpointIO
from openwavlm.training.settings import TrainerSettings
from openwavlm.training.sharding import ShardedStrategy


def device_type(settings: TrainerSettings) -> str:
    """Device of the step: `cuda` or `cpu`."""
    return "cuda" if torch.cuda.is_available() and settings.accelerator != "cpu" else "cpu"


def make_trainer(
    settings: TrainerSettings, precision: str, updates: int, directory: Path, boundary: StepBoundary, world_size: int
) -> Trainer:
    """Lightning's trainer without samplers, loggers, clipping or accumulation of its own."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    # Lightning 2.6 calls what torch 2.11 deprecates, once a run.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning.*")
    strategy: Any = "auto"
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    # Explicit, since Lightning would requeue a Slurm job by itself: signals are ours.
    environment: ClusterEnvironment = LightningEnvironment()
    if world_size > 1:
        environment = TorchElasticEnvironment()
        strategy = (
            ShardedStrategy()
            if settings.strategy == "fsdp"
            else DDPStrategy(find_unused_parameters=False, broadcast_buffers=False)
        )
    plugins: list[Any] = [AtomicCheckpointIO(), environment]
    if precision == "16-mixed":
        # Autocast alone: `loss_scale` scales the loss without synchronisation.
        device = device_type(settings)
        plugins.append(MixedPrecision("16-mixed", device, scaler=torch.amp.GradScaler(device, enabled=False)))
    trainer = Trainer(
        accelerator=settings.accelerator,
        devices=local if world_size > 1 else 1,
        num_nodes=world_size // local,
        strategy=strategy,
        precision=None if precision == "16-mixed" else precision,
        max_steps=updates,
        max_epochs=-1,
        limit_val_batches=0,
        callbacks=[boundary],
        plugins=plugins,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=str(directory),
    )
    # Lightning broadcasts a flag and reads it back on the device before every batch; our signals are in `Control` instead.
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
    return trainer
