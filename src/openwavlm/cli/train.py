"""The training program: one process, or one for each device under torchrun."""

import logging
import os
import sys
from pathlib import Path

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.cli.terminal import show_config
from openwavlm.runs.check import CheckedData, check_launch, check_world_size
from openwavlm.runs.compose import plain
from openwavlm.runs.launch import train
from openwavlm.runs.names import run_folder
from openwavlm.runtime.processes import answer_parent, run_handing_on_signals
from openwavlm.training.config import RunConfig
from openwavlm.training.control import signalled
from openwavlm.training.settings import TrainerSettings

log = logging.getLogger(__name__)
_checked: dict[str, CheckedData] = {}  # data of earlier trials; a sweep over other keys has one entry


def under_torchrun(command: str, devices: int) -> int:
    """Runs this command in `devices` processes under torchrun, however it was started; returns its exit status."""
    arguments = ["--standalone", f"--nproc-per-node={devices}", "-m", "openwavlm", command, *sys.argv[1:]]
    return run_handing_on_signals([sys.executable, "-m", "openwavlm.runtime.torchrun", *arguments])


def check_devices(settings: TrainerSettings, *, sweeps: bool) -> None:
    """Refuses settings of device and processes that are impossible on this machine."""
    if settings.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "trainer.accelerator is gpu, but torch finds no GPU here: see `nvidia-smi`, or use trainer.accelerator=auto"
        )
    if settings.devices > 1 and "WORLD_SIZE" not in os.environ and sweeps:
        raise ValueError(
            "a sweep with trainer.devices > 1 needs a launcher that starts torchrun for each trial; run the trials one by one, or "
            "with trainer.devices=1"
        )


def _check_trial(config: DictConfig, folder: Path) -> None:
    """Makes all checks of a sweep's trial that are possible before training."""
    run_folder(config.name)
    values = plain(config)
    check_devices(RunConfig.of(values).trainer, sweeps=True)
    check_launch(values, folder, _checked)


@command("train", _check_trial)
def main(config: DictConfig) -> None:
    """Trains; several devices on one node run under torchrun."""
    answer_parent()
    hydra = HydraConfig.get()
    run_folder(config.name)
    run = RunConfig.of(plain(config))  # a misspelt key is refused here, by one process
    check_devices(run.trainer, sweeps=hydra.mode == RunMode.MULTIRUN)
    if run.trainer.devices > 1 and "WORLD_SIZE" not in os.environ:
        check_world_size(run.trainer.devices, run.batch)
        sys.exit(under_torchrun("train", run.trainer.devices))
    folder = Path(hydra.runtime.output_dir)
    if os.environ.get("RANK", "0") == "0":
        show_config(plain(config), str(folder))
    train(config, folder)
    if hydra.mode == RunMode.MULTIRUN and signalled():
        log.info("the sweep ends with this trial; the same command resumes it")
        sys.exit(0)  # else Hydra begins the next trial
