"""A stage as a Slurm job array, through submitit: one call of the stage's function per job, which resumes by its done-files."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from openwavlm.runtime.progress import ProgressBar

log = logging.getLogger(__name__)

_LAUNCHERS = ("local", "slurm")
_CLUSTERS = ("slurm", "local")  # submitit's debug executor stops in a debugger where a job fails


@dataclass(frozen=True)
class Slurm:
    """Resources of each job of an array.

    Attributes:
        partition: Partition; None = the cluster's default.
        timeout_min: Longest time, minutes; a job that needs more is requeued and resumes.
        cpus: Cores; None = one per worker.
        gpus: GPUs.
        mem_gb: Memory, GB; None = the cluster's default.
        parallel: Largest number of jobs that run at once.
        directives: Further `sbatch` options, as `{account: speech, qos: long}`.
        folder: Folder for scripts, logs and results; None = beside the output.
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
                raise ValueError(f"slurm.{name} must be positive, but is {value}")
        if self.gpus < 0:
            raise ValueError(f"slurm.gpus must not be negative, but is {self.gpus}")
        if self.cluster not in _CLUSTERS:
            raise ValueError(f"slurm.cluster must be one of {', '.join(_CLUSTERS)}, but is {self.cluster!r}")


def is_array(launcher: str, task_index: int | None) -> bool:
    """True if a command submits jobs instead of doing the work itself.

    Raises:
        ValueError: If the launcher is unknown, or a job of an array would submit another.
    """
    if launcher not in _LAUNCHERS:
        raise ValueError(f"launcher must be one of {', '.join(_LAUNCHERS)}, but is {launcher!r}")
    if launcher == "slurm" and task_index is not None:
        raise ValueError(
            f"launcher=slurm sets the task_index of every job, but task_index is {task_index}: leave it out, or use launcher=local under "
            "your own scheduler"
        )
    return launcher == "slurm"


@dataclass
class ArrayTask:
    """A stage's function as a job that is requeued after preemption or a timeout."""

    function: Callable[..., Any]

    def __call__(self, **arguments: Any) -> None:
        """Calls the function and drops its result."""
        logging.basicConfig(level=logging.INFO, format="%(message)s", force=True)
        self.function(**arguments)

    def checkpoint(self, **arguments: Any) -> Any:
        """The submission that replaces a stopped job: the same call."""
        return _submitit().helpers.DelayedSubmission(self, **arguments)


def _submitit() -> Any:
    try:
        return import_module("submitit")
    except ImportError as error:
        raise ValueError(
            'launcher=slurm needs submitit, which is not installed: pip install "openwavlm[slurm]", or use task_index and num_tasks '
            "under your own scheduler"
        ) from error


def run_array(
    function: Callable[..., Any], arguments: dict[str, Any], *, num_tasks: int, workers: int, folder: Path, slurm: Slurm
) -> bool:
    """Submits an array in which job i calls `function(**arguments, num_tasks=num_tasks, task_index=i)`, and waits for it.

    Relative paths among the arguments are made absolute. `workers` and `folder` are the defaults of `slurm.cpus` and `slurm.folder`.

    Returns:
        True if all jobs succeeded; False with `slurm.wait=false`.

    Raises:
        ValueError: If submitit or sbatch is missing, there is no job, or a job failed.
    """
    submitit = _submitit()
    if num_tasks < 1:
        raise ValueError(f"launcher=slurm needs at least one job, but num_tasks is {num_tasks}: give num_tasks=NUMBER")
    if slurm.cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise ValueError(
            "launcher=slurm needs sbatch and srun, which are not found here: run it on a login node, or use launcher=local"
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
        log.info("slurm.wait is false: when the jobs have ended, run the same command with launcher=local to finish")
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
            f"{len(failed)} of {len(jobs)} jobs failed, first {job.job_id}: {_last_line(error)} (its log: {job.paths.stderr}); "
            "finished work is kept: solve that and run the same command again"
        )


def _last_line(error: BaseException) -> str:
    """The job's own error message, from the traceback that submitit wraps around it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    messages = [line for line in lines if "Error: " in line]
    return (messages or lines or [type(error).__name__])[-1]
