"""Labels a shard set with a codebook, or with several in one pass: `openwavlm assign-labels --help`."""

from omegaconf import DictConfig

from openwavlm.cli.app import arguments_of, command
from openwavlm.labels.assign import assign_labels
from openwavlm.runtime.job_array import Slurm, is_array, run_array


@command("prep/assign_labels")
def main(config: DictConfig) -> None:
    """Runs `assign_labels`, here or as a job array."""
    arguments = arguments_of(assign_labels, config)
    if not is_array(config.launcher, config.task_index):
        assign_labels(**arguments)
        return
    num_tasks, _, outputs = arguments.pop("num_tasks"), arguments.pop("task_index"), arguments["output"]
    folder = outputs[0].with_name(f"{outputs[0].name}.jobs")
    slurm = Slurm(**config.slurm)
    ended = run_array(assign_labels, arguments, num_tasks=num_tasks, workers=config.workers, folder=folder, slurm=slurm)
    if ended and not all((output / "meta.json").is_file() for output in outputs):
        # On a network file system, each of the last two jobs can miss the done-file of the other.
        assign_labels(**arguments | {"device": "cpu"})
