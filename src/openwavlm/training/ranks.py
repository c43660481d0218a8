"""The processes of a run, started by torchrun, by Slurm or alone."""

import logging
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import timedelta

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import SLURMEnvironment

_FIRST_PORT, _PORTS = 15_000, 20_000
log = logging.getLogger(__name__)


def slurm_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Environment variables of torchrun from those of `srun`; empty with one task or under torchrun.

    Raises:
        ValueError: If a job of several tasks runs its script without `srun`; if nodes have different numbers of tasks.
    """
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if tasks < 2 or "WORLD_SIZE" in environment:
        return {}
    if "SLURM_STEP_ID" not in environment:
        raise ValueError(
            f"Slurm has {tasks} tasks for this job, but this program was not started by srun and would train alone: write `srun python "
            "train.py ...` in the job script"
        )
    local = set(re.findall(r"(?:^|,)(\d+)", environment["SLURM_STEP_TASKS_PER_NODE"]))
    if len(local) > 1:
        raise ValueError(
            f"every node must have the same number of tasks, but they have {environment['SLURM_STEP_TASKS_PER_NODE']}: use "
            "--ntasks-per-node"
        )
    first = SLURMEnvironment.resolve_root_node_address(environment.get("SLURM_STEP_NODELIST", environment["SLURM_JOB_NODELIST"]))
    port = _FIRST_PORT + int(environment["SLURM_JOB_ID"]) % _PORTS
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "LOCAL_WORLD_SIZE": local.pop(),
        "GROUP_RANK": environment["SLURM_NODEID"],
        "MASTER_ADDR": environment.get("MASTER_ADDR", first),
        "MASTER_PORT": environment.get("MASTER_PORT", str(port)),
    }


def join_processes(patience: timedelta | None = None) -> tuple[int, int]:
    """Joins the process group of torchrun or `srun`, waiting at most `patience` (torch's default: minutes); returns (rank, world size).

    Raises:
        ValueError: As `slurm_variables`.
    """
    os.environ.update(slurm_variables(os.environ))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=patience)
    return int(os.environ.get("RANK", "0")), world_size


def requeue_job() -> bool:
    """Lets Slurm queue this job again after its end; returns whether that worked. Does nothing outside of Slurm."""
    job = os.environ.get("SLURM_JOB_ID")
    program = shutil.which("scontrol")
    if job is None or program is None:
        return False
    answer = subprocess.run([program, "requeue", job], capture_output=True, text=True, check=False)
    if answer.returncode:
        log.warning("scontrol requeue %s: %s", job, answer.stderr.strip())
    else:
        log.info("job %s is queued again and will resume from the checkpoint", job)
    return answer.returncode == 0
