"""The training program: one process, or one for each device under torchrun."""

import os
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from openwavlm.cli import command
from openwavlm.train import train


def _under_torchrun(devices: int) -> None:
    """Replaces this process by torchrun with `devices` processes of the same command."""
    arguments = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", *sys.argv]
    os.execv(sys.executable, [sys.executable, *arguments])


@command("train")
def main(config: DictConfig) -> None:
    """Trains; more than one device on one node is handed to torchrun."""
    hydra = HydraConfig.get()
    devices = int(config.trainer.get("devices", 1))
    if devices > 1 and "WORLD_SIZE" not in os.environ:
        if hydra.mode == RunMode.MULTIRUN:
            raise ValueError(
                "a sweep with trainer.devices > 1 needs a launcher that starts torchrun for each trial; run the trials one by one, or "
                "with trainer.devices=1"
            )
        _under_torchrun(devices)
    train(config, Path(hydra.runtime.output_dir))
