"""Ctrl-C at any moment of any command, its start included: one line, status 130, and the same command goes on to an equal result."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from openwavlm.labels.assign import assign_labels
from openwavlm.labels.fit import fit_codebook
from patience import HANG_S
from programs import REPOSITORY
from runs import SETTINGS
from synthetic import make_corpus, make_shard_set

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="moments are told by /proc")

LINE = "interrupted: run the same command again to resume"
# Before its first statement a program of Python cannot answer: site and the parser take some hundredths of a second.
EARLIEST_CPU_S = 0.15
TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(session: int) -> float:
    """CPU time of the living processes of a session: a clock that stands still where the machine is busy with others."""
    total = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, IndexError):
            fields = path.read_text().rsplit(")", 1)[1].split()
            if int(fields[3]) == session:
                total += int(fields[11]) + int(fields[12])
    return total / TICKS


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int
    told: str
    cpu_s: float


def run(folder: Path, command: list[str], *, interrupt_at_s: float = float("inf")) -> Ended:
    """Runs a command in a session of its own, to which Ctrl-C is sent when it has used so much CPU time."""
    folder.mkdir(exist_ok=True)
    with (folder / "stderr.txt").open("w") as told:
        program = subprocess.Popen(
            [sys.executable, *command],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=told,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background job of a shell ignores it
        )
        used, deadline = 0.0, time.monotonic() + HANG_S
        try:
            while program.poll() is None and used < interrupt_at_s:
                assert time.monotonic() < deadline, "it hangs"
                time.sleep(0.002)
                used = max(used, cpu_seconds(program.pid))
            if program.poll() is None:
                os.killpg(program.pid, signal.SIGINT)
            program.wait(HANG_S)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(program.pid, signal.SIGKILL)
            program.wait()
    return Ended(program.returncode, (folder / "stderr.txt").read_text(), used)


def answered(ended: Ended) -> bool:
    """Whether it was interrupted, which it must answer as it should; else it must have ended well before."""
    assert "Traceback" not in ended.told and "Exception" not in ended.told, ended
    if ended.status == 0:
        return False
    assert ended.status == 130, ended
    assert [line for line in ended.told.splitlines() if "interrupted" in line] == [LINE], ended
    assert ended.told.endswith(f"{LINE}\n"), ended
    return True


def moments(count: int, longest_s: float, seed: int) -> Iterator[float]:
    generator = random.Random(seed)
    return (generator.uniform(EARLIEST_CPU_S, longest_s) for _ in range(count))


def content(folder: Path) -> dict[str, bytes]:
    """The files of a shard set that say what was prepared; none is left unfinished."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    assert not [path for path in files if path.suffix == ".tmp"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# --- preparation --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("interrupts") / "corpus", speakers=4, utterances=12, seconds=(1.0, 2.0))


@pytest.fixture(scope="module")
def undisturbed(corpus: Path) -> tuple[dict[str, bytes], float]:
    """What is prepared without an interruption, and the CPU time that it takes."""
    ended = run(corpus.parent / "undisturbed", preparing(corpus, 1))
    assert ended.status == 0, ended
    return content(corpus.parent / "undisturbed" / "shards"), ended.cpu_s


def preparing(corpus: Path, workers: int) -> list[str]:
    script = str(REPOSITORY / "data_prep" / "make_shards.py")
    return [script, f"input={corpus}", "output=shards", "source=s", "task_hours=0.002", "speaker_folder=1", f"workers={workers}"]


def interrupted_preparations(
    corpus: Path, undisturbed: tuple[dict[str, bytes], float], folder: Path, tries: int, seed: int
) -> int:
    expected, cpu_s = undisturbed
    count = 0
    for number, moment in enumerate(moments(tries, cpu_s, seed)):
        place = folder / f"{number}"
        command = preparing(corpus, 1 + number % 2)
        count += answered(run(place, command, interrupt_at_s=moment))
        last = run(place, command)
        assert last.status == 0, last
        assert content(place / "shards") == expected, f"try {number}, interrupted after {moment:.3f} s"
    return count


def test_an_interrupted_pool_says_no_more_than_one_line(corpus, tmp_path):
    """Up to the end of the last of its processes, the resource tracker of multiprocessing, which ends after the program."""
    command = [sys.executable, *preparing(corpus, 2)]
    program = subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + HANG_S
        while not any(tmp_path.glob("shards/done/*/*.json")):
            assert time.monotonic() < deadline and program.poll() is None
            time.sleep(0.002)
        os.killpg(program.pid, signal.SIGINT)
        told = program.communicate(timeout=HANG_S)[1].decode()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(program.pid, signal.SIGKILL)
    assert program.returncode == 130
    assert told.endswith(f"{LINE}\n") and "Warning" not in told, told


def test_an_interrupted_preparation_goes_on_to_the_same_bytes(corpus, undisturbed, tmp_path):
    assert interrupted_preparations(corpus, undisturbed, tmp_path, tries=2, seed=1)


@pytest.mark.long
def test_thirty_interrupted_preparations_go_on_to_the_same_bytes(corpus, undisturbed, tmp_path):
    assert interrupted_preparations(corpus, undisturbed, tmp_path, tries=30, seed=2) >= 20


# --- training and the other commands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of shards, a codebook and labels."""
    folder = tmp_path_factory.mktemp("data")
    shards = make_shard_set(folder, speakers=8, utterances=4, seconds=(1.0, 3.0))
    fit_codebook([shards], folder / "book", clusters=10, engine="minibatch", min_frames_per_cluster=20, validation_share=0.3)
    assign_labels(shards, folder / "book", folder / "labels")
    return folder


def training(data: Path, workers: int) -> list[str]:
    places = [f"data.sources.speech={{shards: {data / 'shard-set'}, labels: {data / 'labels'}}}", "mixing.noise_prob=0"]
    return [str(REPOSITORY / "train.py"), *SETTINGS, *places, f"loader.workers={workers}", "optim.updates=3"]


def interrupted_trainings(data: Path, folder: Path, tries: int, seed: int) -> int:
    whole = run(folder / "whole", training(data, 0))
    assert whole.status == 0, whole
    expected = (folder / "whole" / "runs" / "test" / "metrics.csv").read_bytes()
    count = 0
    for number, moment in enumerate(moments(tries, whole.cpu_s, seed)):
        place, command = folder / f"{number}", training(data, number % 3)
        ended = run(place, command, interrupt_at_s=moment)
        count += answered(ended)  # once it trains it saves and ends with status 0
        assert run(place, command).status == 0
        assert (place / "runs" / "test" / "metrics.csv").read_bytes() == expected, f"interrupted after {moment:.3f} s"
    return count


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_training_that_starts_answers_an_interruption_in_one_line(data, tmp_path, workers):
    moment = next(moments(1, 3.0, seed=workers))  # the imports alone take longer
    assert answered(run(tmp_path / "place", training(data, workers), interrupt_at_s=moment))
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.long
def test_thirty_interrupted_trainings_end_with_the_same_figures(data, tmp_path):
    assert interrupted_trainings(data, tmp_path, tries=30, seed=4) >= 15


def commands(data: Path) -> dict[str, list[str]]:
    shards, prep = data / "shard-set", REPOSITORY / "data_prep"
    return {
        "fit": [
            f"{prep}/fit_kmeans.py",
            f"shards={shards}",
            "output=out",
            "clusters=8",
            "min_frames_per_cluster=20",
            "workers=2",
        ],
        "assign": [f"{prep}/assign_labels.py", f"shards={shards}", f"codebook={data / 'book'}", "output=out", "workers=2"],
        "verify": [f"{prep}/verify.py", f"shards={shards}", f"labels={data / 'labels'}", "share=1", "workers=2"],
        "extract": [
            "-m",
            "openwavlm",
            "extract",
            f"codebook={data / 'book'}",
            f"input={data / 'corpus'}",
            "output=out",
            "workers=2",
        ],
        "plan": ["-m", "openwavlm", "plan", "experiment=wavlm_nano"],
        "tune": ["-m", "openwavlm", "tune", "experiment=wavlm_nano", "seconds=1"],
        "export": ["-m", "openwavlm", "export", "run=nowhere"],
        "iterate": ["-m", "openwavlm", "iterate", "--config-name", "demo", "dry_run=true"],
    }


@pytest.mark.long
@pytest.mark.parametrize("name", list(commands(Path())))
def test_every_command_answers_an_interruption_in_one_line(data, tmp_path, name):
    command = commands(data)[name]
    moment = iter(moments(3, 3.0, seed=len(name)))
    for number in range(3):
        ended = run(tmp_path / f"{number}", command, interrupt_at_s=next(moment))
        if name == "export" and ended.status == 2:
            continue  # it ended before
        answered(ended)
