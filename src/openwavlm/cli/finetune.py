"""`openwavlm finetune`: CTC or classification on an encoder, on the engine of pre-training."""

import os
import sys
from pathlib import Path

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.cli.terminal import show_config
from openwavlm.cli.train import check_devices, under_torchrun
from openwavlm.downstream.config import FinetuneConfig
from openwavlm.downstream.launch import finetune
from openwavlm.runs.check import check_world_size
from openwavlm.runs.compose import plain
from openwavlm.runs.names import run_folder
from openwavlm.runtime.processes import answer_parent
from openwavlm.training.config import default_values

# Below the groups of conf/finetune.yaml: a file there states only what differs from the defaults of the classes.
ConfigStore.instance().store(name="defaults_of_finetuning", node=default_values(FinetuneConfig))


@command("finetune")
def main(config: DictConfig) -> None:
    """Fine-tunes; several devices on one node run under torchrun."""
    answer_parent()
    hydra = HydraConfig.get()
    run_folder(config.name)
    settings = FinetuneConfig.of(plain(config))  # a misspelt key is refused here, by one process
    check_devices(settings.trainer, sweeps=hydra.mode == RunMode.MULTIRUN)
    if settings.trainer.devices > 1 and "WORLD_SIZE" not in os.environ:
        check_world_size(settings.trainer.devices, settings.batch)
        sys.exit(under_torchrun("finetune", settings.trainer.devices))
    folder = Path(hydra.runtime.output_dir)
    if os.environ.get("RANK", "0") == "0":
        show_config(plain(config), str(folder))
    finetune(plain(config), folder)
