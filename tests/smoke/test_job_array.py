"""A stage as a job array: the bytes of one process, whoever schedules it; and the sentences of what is missing."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from openwavlm.runtime.job_array import Slurm, is_array, run_array
from programs import REPOSITORY, run_program
from synthetic import make_corpus, make_shard_set

needs_submitit = pytest.mark.skipif(importlib.util.find_spec("submitit") is None, reason='pip install "openwavlm[slurm]"')
SHARDS = ["speaker_folder=1", "min_seconds=0.5", "utterances_per_shard=3", "task_hours=0.001", "source=synthetic"]


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), speakers=4, utterances=3, seconds=(0.8, 1.5))


@pytest.fixture(scope="module")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shard_set(tmp_path_factory.mktemp("shards"), corpus=corpus, utterances_per_shard=3)


@pytest.fixture(scope="module")
def codebook(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("codebook") / "mfcc"
    fit_codebook([shards], output, clusters=8, min_frames_per_cluster=20, validation_share=0.0)
    return output


@needs_submitit
def test_an_array_of_labelling_jobs_gives_the_bytes_of_one_process(shards: Path, codebook: Path, tmp_path: Path) -> None:
    assign_labels(shards, codebook, tmp_path / "alone")
    arguments = [f"shards={shards}", f"codebook={codebook}", "output=out", "launcher=slurm", "slurm.cluster=local", "num_tasks=2"]
    # A process of its own: submitit's helpers leave files open until they are collected.
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "data_prep" / "assign_labels.py"), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "2 jobs submitted, the first is" in done.stderr
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")
    assert {path.name for path in tmp_path.iterdir()} == {"alone", "out", "out.jobs"}


@needs_submitit
def test_an_array_prepares_the_shards_of_one_process(corpus: Path, tmp_path: Path) -> None:
    alone = run_program(tmp_path, "data_prep/make_shards.py", f"input={corpus}", "output=alone", *SHARDS)
    assert alone.status == 0, alone.stderr
    arguments = [f"input={corpus}", "output=out", *SHARDS, "launcher=slurm", "slurm.cluster=local", "num_tasks=2"]
    done = run_program(tmp_path, "data_prep/make_shards.py", *arguments)
    assert done.status == 0, done.stderr
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")
    assert len(list((tmp_path / "out").rglob("*.tar"))) > 2


@needs_submitit
def test_a_job_that_fails_is_named_with_its_error(shards: Path, codebook: Path, tmp_path: Path) -> None:
    # Unknown to the launching process, which opens nothing: the jobs themselves refuse it.
    arguments = [f"shards={shards}", f"codebook={tmp_path / 'nowhere'}", "output=out", "launcher=slurm", "slurm.cluster=local"]
    message = run_program(tmp_path, "data_prep/assign_labels.py", *arguments).error()
    assert re.match(
        r"1 of 1 jobs failed, first \S+: ValueError: a folder of codebook must have meta\.json, .*nowhere has none", message
    )
    assert re.search(r"\(its log: \S+\.err\); finished work is kept: solve that and run the same command again$", message)


@needs_submitit
def test_an_array_needs_a_place_to_submit_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no sbatch
    with pytest.raises(ValueError, match="needs sbatch and srun, which are not found here"):
        run_array(assign_labels, {}, num_tasks=1, workers=1, folder=tmp_path / "jobs", slurm=Slurm())


def test_submitit_is_asked_for_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(
        ValueError, match=r'^launcher=slurm needs submitit, .* not installed: pip install "openwavlm\[slurm\]", or'
    ):
        run_array(assign_labels, {}, num_tasks=1, workers=1, folder=tmp_path / "jobs", slurm=Slurm())


@needs_submitit
def test_slurm_is_asked_for_what_the_settings_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text(f'#!/bin/sh\ncp "$1" {tmp_path}/script.sh\necho "Submitted batch job 4711"\n')
    sbatch.chmod(0o755)
    sbatch.with_name("srun").symlink_to(sbatch)
    monkeypatch.setenv("PATH", f"{sbatch.parent}:{os.environ['PATH']}")
    slurm = Slurm(partition="gpu", timeout_min=90, gpus=1, mem_gb=16, parallel=5, directives={"account": "speech"}, wait=False)
    assert run_array(assign_labels, {}, num_tasks=7, workers=3, folder=tmp_path / "jobs", slurm=slurm) is False
    asked = {line.removeprefix("#SBATCH ") for line in (tmp_path / "script.sh").read_text().splitlines() if "#SBATCH" in line}
    wanted = {"--partition=gpu", "--time=90", "--gpus-per-node=1", "--mem=16GB", "--array=0-6%5", "--account=speech"}
    assert wanted | {"--cpus-per-task=3", "--ntasks-per-node=1", "--job-name=assign_labels"} <= asked, asked


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"timeout_min": 0}, r"slurm\.timeout_min must be positive, but is 0"),
        ({"mem_gb": -1.0}, r"slurm\.mem_gb must be positive, but is -1"),
        ({"gpus": -1}, r"slurm\.gpus must not be negative"),
        ({"cluster": "pbs"}, r"slurm\.cluster must be one of slurm, local, but is 'pbs'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Slurm(**settings)


def test_a_launcher_is_local_or_slurm_and_never_inside_a_job() -> None:
    assert is_array("slurm", None) and not is_array("local", 3)
    with pytest.raises(ValueError, match="launcher must be one of local, slurm, but is 'ray'"):
        is_array("ray", None)
    with pytest.raises(ValueError, match="sets the task_index of every job, but task_index is 0"):
        is_array("slurm", 0)
