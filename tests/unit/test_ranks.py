"""Slurm's variables become torchrun's; a job is queued again by scontrol."""

import runpy
import stat
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from openwavlm.training.ranks import requeue_job, slurm_variables

SRUN = {
    "SLURM_JOB_ID": "31007",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


def test_a_task_of_srun_knows_its_rank_its_node_and_where_the_others_meet():
    assert slurm_variables(SRUN) == {
        "RANK": "5",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "GROUP_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "26007",
    }


def test_an_address_that_the_job_script_chose_is_kept():
    found = slurm_variables({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"})
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "29500")


def test_under_torchrun_and_with_one_task_slurm_is_left_alone():
    assert slurm_variables({**SRUN, "WORLD_SIZE": "8"}) == {}
    assert slurm_variables({**SRUN, "SLURM_NTASKS": "1"}) == {}
    assert slurm_variables({}) == {}


def test_several_tasks_without_srun_are_refused():
    alone = {key: value for key, value in SRUN.items() if "STEP" not in key}
    with pytest.raises(ValueError, match=r"Slurm has 8 tasks for this job, but .* write `srun python train.py"):
        slurm_variables(alone)


def test_unequal_nodes_are_refused():
    with pytest.raises(ValueError, match=r"same number of tasks, but they have 4,3: use --ntasks-per-node"):
        slurm_variables({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4,3"})


def test_processes_that_fit_a_codebook_wait_for_the_slowest_one_for_days(monkeypatch, tmp_path):
    asked = {}

    def joined(backend, timeout=None):
        asked["timeout"] = timeout
        raise SystemExit

    monkeypatch.setattr(dist, "init_process_group", joined)
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    script = Path(__file__).parents[2] / "data_prep" / "fit_kmeans.py"
    monkeypatch.setattr(sys, "argv", [str(script), f"shards={tmp_path}", f"output={tmp_path / 'km'}"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    assert asked["timeout"] >= timedelta(days=1)


def scontrol(folder: Path, status: int) -> Path:
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\necho no such job >&2\nexit {status}\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder / "asked"


def test_scontrol_is_asked_to_queue_the_job_again(tmp_path, monkeypatch):
    asked = scontrol(tmp_path, 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "31007")
    assert requeue_job() and asked.read_text() == "requeue 31007\n"


def test_a_refusal_of_scontrol_is_a_warning(tmp_path, monkeypatch, caplog):
    scontrol(tmp_path, 1)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "31007")
    assert not requeue_job() and "scontrol requeue 31007: no such job" in caplog.text


def test_outside_of_slurm_nobody_is_asked(tmp_path, monkeypatch):
    asked = scontrol(tmp_path, 0)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert not requeue_job() and not asked.exists()
