"""A stage as a Slurm job array, through submitit: the stage's own function, called once a job with its `task_index`.

What is done is known from done-files alone: a job that was preempted, timed out or failed goes on where it stopped, whoever starts it.
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from openwavlm.runtime.progress import ProgressBar

log = logging.getLogger(__name__)

LAUNCHERS = ("local", "slurm")
CLUSTERS = ("slurm", "local")  # submitit's debug executor stops in a debugger where a job fails


@dataclass(frozen=True)
class Slurm:
    """What each job of an array asks for.

    Attributes:
        partition: Where it runs; None = the cluster's default.
        timeout_min: Longest time, minutes; a job that needs more is queued again and goes on.
        cpus: Cores; None = one a worker.
        gpus: GPUs.
        mem_gb: Memory, GB; None = the cluster's default.
        parallel: Most jobs that run at once.
        directives: Further `sbatch` options, as `{account: speech, qos: long}`.
        folder: Where submitit keeps scripts, logs and results; None = beside the output.
        wait: Whether the command waits for the jobs.
        cluster: `slurm`, or `local` to try the array as processes of this machine.

    Raises:
        ValueError: If a number is not positive or the cluster is unknown.
    """

    partition: str | None = None
    timeout_min: int = 720
    cpus: int | None = None
    gpus: int = 0
    mem_gb: float | None = None
    parallel: int = 256
    directives: dict[str, str | int | float | bool] = field(default_factory=dict)
    folder: str | None = None
    wait: bool = True
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        for name in ("timeout_min", "cpus", "mem_gb", "parallel"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"slurm.{name} must be positive, but is {value}: correct it")
        if self.gpus < 0:
            raise ValueError(f"slurm.gpus must not be negative, but is {self.gpus}: correct it")
        if self.cluster not in CLUSTERS:
            raise ValueError(f"slurm.cluster must be one of {', '.join(CLUSTERS)}, but is {self.cluster!r}: correct it")


def is_array(launcher: str, task_index: int | None) -> bool:
    """Whether a command is to submit jobs instead of working itself.

    Raises:
        ValueError: If there is no such launcher, or a job of an array would submit another.
    """
    if launcher not in LAUNCHERS:
        raise ValueError(f"launcher must be one of {', '.join(LAUNCHERS)}, but is {launcher!r}: correct it")
    if launcher == "slurm" and task_index is not None:
        raise ValueError(
            f"launcher=slurm gives every job its task_index itself, but task_index is {task_index}: leave it out, or use "
            "launcher=local under a scheduler of your own"
        )
    return launcher == "slurm"


class ArrayTask:
    """A stage's function as a job that is queued again when it was preempted or ran out of time."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, **arguments: Any) -> None:
        """Calls the function; what it returns stays with the job."""
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        self.function(**arguments)

    def checkpoint(self, **arguments: Any) -> Any:
        """What submitit queues in place of a job that it had to stop: the same again."""
        return _submitit().helpers.DelayedSubmission(self, **arguments)


def _submitit() -> Any:
    try:
        return import_module("submitit")
    except ImportError as error:
        raise ValueError(
            'launcher=slurm needs submitit, which is not installed: pip install "openwavlm[slurm]", or use task_index and num_tasks '
            "under a scheduler of your own"
        ) from error


def run_array(
    function: Callable[..., Any], arguments: dict[str, Any], *, num_tasks: int, workers: int, folder: Path, slurm: Slurm
) -> bool:
    """Submits an array whose job number i calls `function(**arguments, num_tasks=num_tasks, task_index=i)`, and waits for it.

    Args:
        function: A function of a module that the nodes can import.
        arguments: Its other arguments; the paths in them are made absolute.
        num_tasks: Jobs.
        workers: Processes of each job, for its number of cores.
        folder: Where scripts, logs and results go unless `slurm.folder` says otherwise.
        slurm: What each job asks for.

    Returns:
        Whether all jobs have ended well; False if nobody waited.

    Raises:
        ValueError: If submitit or sbatch is missing, there is no job, or a job failed (named, with its error and its log).
    """
    submitit = _submitit()
    if num_tasks < 1:
        raise ValueError(f"launcher=slurm needs at least one job, but num_tasks is {num_tasks}: give num_tasks=NUMBER")
    if slurm.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise ValueError(
            "launcher=slurm needs sbatch and srun, which are not found here: run it where jobs are submitted, or use launcher=local"
        )
    folder = Path(slurm.folder) if slurm.folder else folder
    executor = submitit.AutoExecutor(folder=folder.resolve(), cluster=slurm.cluster)
    executor.update_parameters(
        name=function.__name__,
        timeout_min=slurm.timeout_min,
        cpus_per_task=slurm.cpus or workers,
        gpus_per_node=slurm.gpus,
        tasks_per_node=1,
        mem_gb=slurm.mem_gb,
        slurm_partition=slurm.partition,
        slurm_array_parallelism=slurm.parallel,
        slurm_additional_parameters=dict(slurm.directives),
    )
    given = {name: _absolute(value) for name, value in arguments.items()}
    with executor.batch():
        jobs = [executor.submit(ArrayTask(function), **given, num_tasks=num_tasks, task_index=i) for i in range(num_tasks)]
    log.info(f"{num_tasks} jobs submitted, the first is {jobs[0].job_id}; logs: {folder}")
    if not slurm.wait:
        log.info("nobody waits for them: the same command again, with launcher=local, finishes what is left")
        return False
    _wait(submitit, jobs)
    return True


def _absolute(value: Any) -> Any:
    if isinstance(value, list):
        return [_absolute(one) for one in value]
    return value.resolve() if isinstance(value, Path) else value


def _wait(submitit: Any, jobs: list[Any]) -> None:
    failed = []
    with ProgressBar(len(jobs), "jobs") as bar:
        for job in submitit.helpers.as_completed(jobs, poll_frequency=2):
            error = job.exception()
            if error is not None:
                failed.append((job, error))
                log.warning(f"job {job.job_id} failed: {_last_line(error)}")
            bar.advance()
    if failed:
        job, error = failed[0]
        raise ValueError(
            f"{len(failed)} of {len(jobs)} jobs failed, first {job.job_id}: {_last_line(error)} (its log: {job.paths.stderr}); what "
            "is done is kept: put that right and run the same command again"
        )


def _last_line(error: BaseException) -> str:
    """What the job itself said; submitit wraps it in a trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    said = [line for line in lines if "Error: " in line]
    return (said or lines or [type(error).__name__])[-1]
