"""Labels a shard set with a codebook, or with several in one pass: `openwavlm assign-labels --help`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from openwavlm.cli.app import command
from openwavlm.labels.assign import assign_labels
from openwavlm.runs.compose import paths
from openwavlm.runtime.job_array import Slurm, is_array, run_array


@command("prep/assign_labels")
def main(config: DictConfig) -> None:
    """Runs `assign_labels`, here or as a job array."""
    outputs = paths(config.output)
    arguments: dict[str, Any] = {
        "shards": Path(config.shards),
        "codebook": paths(config.codebook) if config.codebook else None,
        "output": outputs,
        "teacher": Path(config.teacher) if config.teacher else None,
        "carry_from": Path(config.carry_from) if config.carry_from else None,
        **{name: config[name] for name in ("device", "mode", "workers", "packs", "max_skip_rate")},
    }
    if not is_array(config.launcher, config.task_index):
        assign_labels(**arguments, num_tasks=config.num_tasks, task_index=config.task_index)
        return
    folder = outputs[0].with_name(f"{outputs[0].name}.jobs")
    slurm = Slurm(**config.slurm)
    ended = run_array(assign_labels, arguments, num_tasks=config.num_tasks, workers=config.workers, folder=folder, slurm=slurm)
    if ended and not all((output / "meta.json").is_file() for output in outputs):
        # On a network file system, each of the last two jobs can miss the done-file of the other.
        assign_labels(**arguments | {"device": "cpu"})
