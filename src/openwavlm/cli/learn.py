"""`openwavlm learn`: paired comparisons over seeds."""

import json
import logging
import os

import torch
from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.pipeline.learn import learn
from openwavlm.runs.compose import plain
from openwavlm.runs.names import run_folder

log = logging.getLogger(__name__)


@command("learn")
def main(config: DictConfig) -> None:
    """The command `openwavlm learn`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    values = plain(config)
    directory = run_folder(values["name"])
    summary = learn(values, directory.resolve())
    primary = summary["primary"]
    found = summary["comparisons"][primary["comparison"]]["figures"][primary["figure"]]
    log.info("primary outcome: %s", json.dumps(found))
    log.info("page: %s, figures: %s", directory / "evidence.md", directory / "summary.json")
