"""Runs on clusters, with stand-ins on one machine: the sbatch file under a fake srun, two torchrun agents of which one is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from patience import wait_until
from runs import SETTINGS, launch, make_data, table

ROOT = Path(__file__).parents[2]
# Starts the tasks of one node as srun does, and passes signals on.
SRUN = """#!{python}
import os, signal, subprocess, sys
command = [word for word in sys.argv[1:] if not word.startswith("--kill")]
tasks = []
for rank in range(2):
    slurm = dict(SLURM_STEP_ID="0", SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank), SLURM_NODEID="0")
    tasks.append(subprocess.Popen(command, env=os.environ | slurm))
signal.signal(signal.SIGUSR1, lambda number, frame: [task.send_signal(number) for task in tasks])
sys.exit(max(task.wait() for task in tasks))
"""
SCONTROL = '#!/bin/sh\necho "$@" >> {asked}\n'


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def steps(directory: Path) -> int:
    path = directory / "metrics.csv"
    return len(path.read_text().splitlines()) - 1 if path.is_file() else 0


def test_the_sbatch_file_trains_and_queues_itself_again_when_time_is_nearly_up(data, tmp_path):
    program(tmp_path, "srun", SRUN.format(python=sys.executable))
    program(tmp_path, "scontrol", SCONTROL.format(asked=tmp_path / "asked"))
    slurm = {
        "SLURM_JOB_ID": str(free_port() - 15_000 + 20_000),  # from which our port is derived
        "SLURM_NTASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_JOB_NODELIST": "localhost",
        "PATH": f"{tmp_path}:/bin:/usr/bin",
        "PYTHON": sys.executable,
    }
    overrides = [*SETTINGS, *data, "optim.updates=2000", f"hydra.run.dir={tmp_path / 'run'}"]
    job = subprocess.Popen(["bash", ROOT / "docs/cluster/train.sbatch", *overrides], cwd=ROOT, env=os.environ | slurm)
    wait_until(lambda: steps(tmp_path / "run") > 5)
    job.send_signal(signal.SIGUSR1)  # `exec srun`: the job script is the fake srun by now
    assert job.wait(60) == 0
    assert (tmp_path / "asked").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    stopped = steps(tmp_path / "run")
    assert 5 < stopped < 2000 and (tmp_path / f"run/checkpoints/step-{stopped:08d}.ckpt").is_file()


def agent(port: int, overrides: list[str], log: Path, *, host: bool) -> subprocess.Popen:
    """One node of an elastic job of one or two nodes; the host keeps the rendezvous and must stay."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=5"]
    rendezvous = ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=test"]
    conf = [f"--rdzv-conf=is_host={int(host)},last_call_timeout=3,read_timeout=20", "--monitor-interval=1"]
    program = [*command, *rendezvous, *conf, "train.py", *overrides]
    # torch 2.11 keeps the first round's shared store and does not tell a node that joins later where it is.
    environment = os.environ | {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with log.open("a") as output:
        return subprocess.Popen(program, cwd=ROOT, stdout=output, stderr=output, start_new_session=True, env=environment)


def lose(node: subprocess.Popen) -> None:
    """Kills an agent and its workers, which torchrun puts into sessions of their own, at once: a machine that went away."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rsplit(")", 1)[1].split()[1])
        except OSError:
            continue
    for worker in [process for process, parent in parents.items() if parent == node.pid] + [node.pid]:
        os.kill(worker, signal.SIGKILL)
    node.wait()


@pytest.mark.long
def test_a_lost_node_is_done_without_and_taken_back(data, tmp_path):
    run = tmp_path / "run"
    overrides = [*SETTINGS, *data, "optim.updates=2500", "callbacks.checkpoint_every=20", "callbacks.validate_every=0"]
    port = free_port()
    command = [*overrides, f"hydra.run.dir={run}"]
    first, second = (agent(port, command, tmp_path / f"agent-{number}.log", host=number == 0) for number in (0, 1))
    try:
        wait_until(lambda: steps(run) > 60)
        lose(second)
        wait_until(lambda: len(segments(run)) > 1 and steps(run) > segments(run)[-1]["from_step"] + 60)
        second = agent(port, command, tmp_path / "agent-2.log", host=False)
        wait_until(lambda: len(segments(run)) > 2)
        assert first.wait(400) == 0 and second.wait(60) == 0, (tmp_path / "agent-0.log").read_text()[-3000:]
    finally:
        for process in (first, second):
            if process.poll() is None:
                lose(process)
    assert [segment["world_size"] for segment in segments(run)] == [2, 1, 2]
    assert launch(overrides, tmp_path / "alone") == [0]
    pairs = list(zip(table(run), table(tmp_path / "alone"), strict=True))
    assert [row["step"] for row, _ in pairs] == [str(step) for step in range(1, 2501)]
    for name in ("masked_frames", "mixed_rows", "audio_s", "lr"):
        assert all(row[name] == other[name] for row, other in pairs), name
    assert all(float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-5) for row, other in pairs[:60])


def segments(run: Path) -> list[dict]:
    path = run / "run.json"
    return json.loads(path.read_text())["segments"] if path.is_file() else []
