"""What the machine refuses while a command runs: memory, disk, a folder that cannot be written. One sentence with the way out."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path

import pytest

from openwavlm.batches.loader import micro_batch_loader, received
from openwavlm.batches.settings import Loading
from openwavlm.cli.app import refusal_of
from openwavlm.runtime import pool
from openwavlm.runtime.pool import run_jobs
from openwavlm.runtime.processes import ended, killed_worker
from openwavlm.training.skipped_updates import check_learned
from programs import HANG_S, run_program
from runs import SETTINGS, launch, make_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


# --- killed processes ---------------------------------------------------------------------------------------------------


class Killed:
    """A builder whose worker is killed at its third batch, as the kernel does when memory runs out."""

    def __getitem__(self, spec: int) -> int:
        if spec == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return spec


class Failing:
    """A builder whose worker meets an error of the machine."""

    def __getitem__(self, spec: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "shards/7.tar")


def test_a_killed_loader_worker_is_a_sentence_with_its_process_and_the_way_out():
    batches = received(iter(micro_batch_loader(Killed(), range(9), Loading(workers=1, prefetch=1))))
    with pytest.raises((OSError, RuntimeError)) as failure:
        list(batches)  # torch reports it where the main process happens to be
    sentence = refusal_of(failure.value)
    assert "was killed" in sentence and "loader.workers" in sentence and "process " in sentence and "\n" not in sentence


ENDS = """
from openwavlm.batches.loader import Loading, micro_batch_loader, received
class Numbers:
    def __getitem__(self, spec):
        return spec
kept = iter(micro_batch_loader(Numbers(), range(1000), Loading(workers=2, prefetch=1)))
print(next(received(kept)), flush=True)
raise ValueError("the trainer fails")
"""


def test_a_program_that_fails_while_its_loader_reads_on_ends():
    # The iterator lives as long as the program, as in the traceback of an error; its workers do not answer SIGTERM.
    ended = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (ended.returncode, ended.stdout) == (1, "0\n") and ended.stderr.endswith("the trainer fails\n")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_the_machine_in_a_loader_worker_keeps_errno_and_file(workers):
    with pytest.raises(OSError, match=r"\[Errno 5\] Input/output error: 'shards/7.tar'") as failure:
        list(received(iter(micro_batch_loader(Failing(), range(3), Loading(workers=workers, prefetch=1)))))
    assert failure.value.errno == errno.EIO and "the disk or file server failed" in refusal_of(failure.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "DataLoader worker (pid 77) is killed by signal: Killed. ",
            "process 77 was killed (Killed), probably for lack of memory: lower loader",
        ),
        (
            "DataLoader worker (pid 77) is killed by signal: Bus error. It is possible …",
            "lack of shared memory: lower loader.workers",
        ),
        ("DataLoader worker (pid(s) 77, 78) exited unexpectedly", "process 77, 78 was killed, probably for lack of memory"),
        ("a bug", None),
    ],
)
def test_torchs_words_for_a_killed_worker_are_known(text, expected):
    found = killed_worker(RuntimeError(text))
    assert found is None if expected is None else expected in found
    assert killed_worker(ValueError(text)) is None


def _die(job: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return job


def test_a_killed_worker_of_a_pool_is_a_sentence():
    with pytest.raises(OSError, match="was killed, probably for lack of memory: run again with fewer workers than 2"):
        list(run_jobs(_die, [1, 2], workers=2))


def _fail(job: int) -> int:
    raise OSError("handle is closed")


class Racing(ProcessPoolExecutor):
    """A pool in which the first job ends while the second is submitted; `late` returns the future of the second."""

    late: Callable[[], "Future[int]"]
    first: "Future[int] | None" = None

    def submit(self, function, /, *arguments, **options):
        if self.first is None:
            self.first = super().submit(function, *arguments, **options)
            return self.first
        if function is int:
            return super().submit(function, *arguments, **options)
        wait([self.first])
        return self.late()


def _closed() -> "Future[int]":
    raise OSError("handle is closed")


@pytest.mark.parametrize("late", [_closed, Future], ids=["the pipe is closed", "the job is lost"])
def test_a_worker_killed_while_jobs_are_submitted_is_the_same_sentence(late, monkeypatch):
    monkeypatch.setattr(Racing, "late", staticmethod(late), raising=False)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Racing)
    with pytest.raises(OSError, match="was killed, probably for lack of memory"):
        list(run_jobs(_die, [1, 2], workers=2))


def test_an_error_of_a_job_or_of_a_start_stays_itself(monkeypatch):
    with pytest.raises(OSError, match=r"^handle is closed$"):
        list(run_jobs(_fail, [1, 2], workers=2))
    monkeypatch.setattr(Racing, "late", staticmethod(_closed), raising=False)
    monkeypatch.setattr(pool, "ProcessPoolExecutor", Racing)
    with pytest.raises(OSError, match=r"^handle is closed$"):
        list(run_jobs(abs, [1, 2], workers=2))


def test_how_a_process_ended_is_said():
    assert "was killed (SIGKILL), probably for lack of memory" in ended(-9) and ended(137) == ended(-9)
    assert ended(-15).startswith("was ended by SIGTERM") and ended(2) == "ended with status 2"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "memory ran out: use fewer workers"),
        (
            RuntimeError("[../gloo/transport/tcp/pair.cc:538] Read error [127.0.0.1]: Connection reset by peer"),
            "another training process",
        ),
        (
            type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"),
            "the GPU's memory is full: lower batch.micro_seconds",
        ),
        (RuntimeError("a bug"), None),
        (KeyError("a bug"), None),
    ],
)
def test_what_the_machine_refuses_is_a_sentence_and_a_bug_is_none(error, sentence):
    assert (refusal_of(error) or "").startswith(sentence or "") if sentence is None else sentence in refusal_of(error)
    assert (refusal_of(error) is None) == (sentence is None)


@pytest.mark.long
def test_a_rank_killed_under_torchrun_is_a_sentence(data, tmp_path):
    import subprocess
    import sys

    from patience import HANG_S, wait_until
    from programs import REPOSITORY

    words = [*SETTINGS, *data, "trainer.devices=2", "optim.updates=100000", "callbacks.validate_every=0", "health.enabled=false"]
    command = [sys.executable, str(REPOSITORY / "train.py"), *words]
    metrics = tmp_path / "runs" / "test" / "metrics.csv"
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True) as program:
        try:
            wait_until(
                lambda: metrics.exists() and metrics.read_text().count("\n") > 2, while_true=lambda: program.poll() is None
            )
            ranks = [
                int(path.parent.name)
                for path in Path("/proc").glob("[0-9]*/environ")
                if _has(path, b"\0RANK=1\0") and tmp_path == (path.parent / "cwd").readlink()
            ]
            os.kill(min(ranks), signal.SIGKILL)
            _, told = program.communicate(timeout=HANG_S)
        finally:
            program.kill()
    assert program.returncode == 137, told
    assert "Traceback" not in told and told.count("was killed (SIGKILL), probably for lack of memory") == 1, told


def _has(path: Path, text: bytes) -> bool:
    try:
        return text in path.read_bytes()
    except OSError:
        return False


# --- updates that changed nothing ---------------------------------------------------------------------------------------


def test_a_run_whose_updates_were_all_skipped_is_refused_as_complete():
    check_learned(20, 19)
    check_learned(0, 0)
    with pytest.raises(ValueError, match=r"all 20 updates were skipped .* start a new run under another name"):
        check_learned(20, 20)


def _all_skipped() -> None:
    import torch

    torch.nn.utils.get_total_norm = lambda gradients: torch.tensor(float("nan"))


def test_a_training_of_skipped_updates_ends_with_an_error_and_is_not_complete(data, tmp_path):
    words = [*SETTINGS, *data, "optim.updates=2", "callbacks.validate_every=0"]
    for _ in range(2):  # the second launch has nothing left to do
        assert launch(words, tmp_path / "run", patch=_all_skipped) != [0]
        found = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert (found["updates"], found["complete"], found["skipped_updates"]) == (2, False, 2)


# --- disks and folders --------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_is_named_with_the_way_out(data, tmp_path):
    (tmp_path / "runs").write_text("a file where the folder of runs would be")
    message = run_program(tmp_path, "train.py", *SETTINGS, *data).error()
    assert "runs" in message and ("[Errno 20]" in message or "[Errno 17]" in message) and "name another path" in message
    message = run_program(tmp_path, "train.py", "-m", "seed=1,2", *SETTINGS, *data).error()
    assert "runs" in message and "name another path" in message
    shards = next(word.split("=")[1] for word in data if ".shards=" in word)
    message = run_program(tmp_path, "data_prep/assign_labels.py", f"shards={shards}", "output=runs/labels", "codebook=x").error()
    assert message.count("\n") == 0


def _no_space_at(name: str, code: int) -> None:
    """Lets every `fsync` of a file whose name has `name` in it fail."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if name in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    os.fsync = fsync


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("name", ["000000-000.tar", "000000.json", "shards.json"])
def test_a_disk_that_refuses_a_preparation_is_named_and_nothing_half_written_counts(tmp_path, monkeypatch, code, name):
    from openwavlm.runtime.resources import explained
    from openwavlm.shards.prepare import make_shards
    from synthetic import make_corpus

    corpus, output = make_corpus(tmp_path / "corpus", speakers=1, utterances=2, seconds=(0.5, 0.6)), tmp_path / "shards"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", os.fsync)
        _no_space_at(name, code)
        with pytest.raises(OSError) as failure:
            make_shards(input=corpus, output=output, source="s")
    assert failure.value.errno == code and Path(failure.value.filename).name == name
    assert f"[Errno {code}]" in explained(failure.value) and "': " in explained(failure.value)
    assert not list(output.rglob("*.tmp/shards.json")) and not (output / "stats.json").exists()
    assert make_shards(input=corpus, output=output, source="s")["utterances"] == 2


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
@pytest.mark.parametrize("name", ["pack-00000.u16", "pack-00000.rows.npy", "codebook.npy", "meta.json", "stats.json"])
def test_a_disk_that_refuses_labels_is_named_and_the_rerun_gives_the_same_bytes(data, tmp_path, monkeypatch, code, name):
    from openwavlm.labels.assign import assign_labels

    shards, labels = (Path(next(word.split("=")[1] for word in data if f".{key}=" in word)) for key in ("shards", "labels"))
    output = tmp_path / "labels"
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", os.fsync)
        _no_space_at(name, code)
        with pytest.raises(OSError) as failure:
            assign_labels(shards, labels.with_name("codebook"), output)
    assert failure.value.errno == code and Path(failure.value.filename).name == name
    assert (output / "meta.json").exists() == (name == "stats.json")
    assign_labels(shards, labels.with_name("codebook"), output)
    for file in labels.glob("pack-*"):
        assert (output / file.name).read_bytes() == file.read_bytes()
    assert not list(output.rglob("*.tmp"))


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_folder_whose_names_cannot_be_made_durable_is_named(tmp_path, monkeypatch, code):
    from openwavlm.runtime.atomic import write_json

    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "fsync", os.fsync)
    _no_space_at("out", code)
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: real(file) if Path(f"/proc/self/fd/{file}").readlink().is_dir() else None)
    with pytest.raises(OSError) as failure:
        write_json(tmp_path / "out" / "a.json", {})
    assert failure.value.errno == code and failure.value.filename == str(tmp_path / "out")
