"""What an array of Slurm jobs is asked for, by a submitit that only writes it down."""

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openwavlm.runtime import job_array
from openwavlm.runtime.job_array import ArrayTask, Slurm, is_array, run_array


def stage(**arguments: Any) -> None:
    """A stage of the preparation."""
    CALLS.append(arguments)


CALLS: list[dict[str, Any]] = []


class Submitit:
    """Keeps what it is given, and ends job number i with `errors[i]`."""

    def __init__(self, errors: dict[int, Exception]) -> None:
        self.errors, self.parameters, self.jobs = errors, {}, []
        self.made: dict[str, Any] = {}
        delayed = lambda task, **arguments: (task, arguments)  # noqa: E731
        self.helpers = SimpleNamespace(as_completed=lambda jobs, poll_frequency: iter(jobs[::-1]), DelayedSubmission=delayed)
        self.waited = False

    def AutoExecutor(self, **made: Any) -> "Submitit":  # noqa: N802
        """This object is its own executor."""
        self.made = made
        return self

    def update_parameters(self, **parameters: Any) -> None:
        """Keeps them."""
        self.parameters = parameters

    def batch(self) -> contextlib.AbstractContextManager:
        """Nothing is sent."""
        return contextlib.nullcontext()

    def submit(self, task: ArrayTask, **arguments: Any) -> Any:
        """Keeps a job."""
        number = len(self.jobs)

        def exception() -> Exception | None:
            self.waited = True
            return self.errors.get(number)

        self.jobs.append(SimpleNamespace(job_id=f"7_{number}", task=task, arguments=arguments, exception=exception))
        self.jobs[-1].paths = SimpleNamespace(stderr=f"log-{number}")
        return self.jobs[-1]


@pytest.fixture
def submit(monkeypatch, tmp_path) -> Any:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(job_array.shutil, "which", lambda name: f"/bin/{name}")

    def run(slurm: Slurm, errors: dict[int, Exception] | None = None, **arguments: Any) -> tuple[Submitit, bool]:
        fake = Submitit(errors or {})
        monkeypatch.setattr(job_array, "_submitit", lambda: fake)
        return fake, run_array(stage, arguments, num_tasks=3, workers=6, folder=Path("jobs"), slurm=slurm)

    return run


def test_each_job_calls_the_function_with_its_number_and_absolute_paths(submit, tmp_path):
    fake, ended = submit(Slurm(), output=Path("out"), folders=[Path("a"), Path("/b")], seed=3, name="out")
    given = {"output": tmp_path / "out", "folders": [tmp_path / "a", Path("/b")], "seed": 3, "name": "out"}
    assert [job.arguments for job in fake.jobs] == [{**given, "num_tasks": 3, "task_index": i} for i in range(3)]
    assert ended and fake.waited and fake.made == {"folder": tmp_path / "jobs", "cluster": "slurm"}
    CALLS.clear()
    fake.jobs[1].task(seed=5, task_index=1)
    assert CALLS == [{"seed": 5, "task_index": 1}]
    assert fake.jobs[1].task.checkpoint(seed=5) == (fake.jobs[1].task, {"seed": 5}), "queued again as it was"


def test_a_job_asks_for_what_the_settings_say(submit, tmp_path):
    settings = Slurm(
        partition="p", timeout_min=90, cpus=11, gpus=2, mem_gb=7.5, parallel=2, directives={"qos": "long"}, folder="elsewhere"
    )
    fake, _ = submit(settings)
    assert fake.parameters == {
        "name": "stage",
        "timeout_min": 90,
        "cpus_per_task": 11,
        "gpus_per_node": 2,
        "tasks_per_node": 1,
        "mem_gb": 7.5,
        "slurm_partition": "p",
        "slurm_array_parallelism": 2,
        "slurm_additional_parameters": {"qos": "long"},
    }
    assert fake.made["folder"] == tmp_path / "elsewhere"
    fake, _ = submit(Slurm())
    expected = {"timeout_min": 720, "cpus_per_task": 6, "gpus_per_node": 0, "mem_gb": None, "slurm_array_parallelism": 256}
    assert {name: fake.parameters[name] for name in expected} == expected, "a core for each worker"


def test_a_failed_job_is_named_with_the_last_error_it_printed(submit):
    errors = {1: ValueError("trace\n  line\nOSError: first\nValueError: the cause\n-----\n"), 2: RuntimeError("")}
    with pytest.raises(ValueError, match=r"2 of 3 jobs failed, first 7_2: RuntimeError \(its log: log-2\)"):
        submit(Slurm(), errors)
    with pytest.raises(ValueError, match=r"1 of 3 jobs failed, first 7_1: ValueError: the cause \(its log: log-1\)"):
        submit(Slurm(), {1: errors[1]})


def test_without_waiting_nothing_is_known_of_the_jobs(submit):
    fake, ended = submit(Slurm(wait=False), {0: ValueError("failed")})
    assert not ended and not fake.waited and len(fake.jobs) == 3


def test_slurms_commands_are_needed_only_on_its_own_cluster(submit, monkeypatch):
    monkeypatch.setattr(job_array.shutil, "which", lambda name: None if name == "srun" else name)
    with pytest.raises(ValueError, match="needs sbatch and srun"):
        submit(Slurm())
    assert submit(Slurm(cluster="local"))[1]


def test_an_array_needs_a_known_launcher_and_no_number_of_its_own():
    assert is_array("slurm", None) and not is_array("local", None) and not is_array("local", 0)
    with pytest.raises(ValueError, match="task_index is 0: leave it out"):
        is_array("slurm", 0)
    with pytest.raises(ValueError, match="launcher must be one of local, slurm, but is 'torch'"):
        is_array("torch", None)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"timeout_min": 0}, "slurm.timeout_min must be positive"),
        ({"cpus": 0}, "slurm.cpus must be positive"),
        ({"mem_gb": 0.0}, "slurm.mem_gb must be positive"),
        ({"parallel": 0}, "slurm.parallel must be positive"),
        ({"gpus": -1}, "slurm.gpus must not be negative"),
        ({"cluster": "debug"}, "slurm.cluster must be one of slurm, local"),
    ],
)
def test_settings_out_of_range_are_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        Slurm(**values)
