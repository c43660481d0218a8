"""The chain under kill -9: whatever stage it hits, finished stages stay and the rest comes out as if nothing had been."""

import importlib.util
import json
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from patience import HANG_S, wait_until
from runs import TINY_MODEL

pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("espeakng_loader") is None, reason="espeak-ng is not installed: pip install 'openwavlm[demo]'"
    ),
]

UPDATES = 8
SMALL = ["optim.warmup_updates=1", "batch.seconds=8", "batch.micro_seconds=4", "loader.workers=0"]
OFTEN = ["callbacks.validate_every=4", "callbacks.checkpoint_every=2"]
OVERRIDES = ",".join(f'"{word}"' for word in ("experiment=wavlm_nano", "loss=warm", *TINY_MODEL, *SMALL, *OFTEN))
DEMO = [
    *("openwavlm", "iterate", "--config-name", "demo", "name=demo"),
    *(f"synthesis.{key}={minutes}" for key, minutes in (("minutes", 1), ("dev_minutes", 0.5), ("test_minutes", 0.5))),
    *("synthesis.clean_minutes=1", "probe.train_seconds=30", "probe.clusters=8"),
    f"overrides=[{OVERRIDES}]",
    f"iterations=[{{features: mfcc, clusters: 8, min_frames_per_cluster: 20, updates: {UPDATES}}}, "
    f"{{features: layer, clusters: 10, min_frames_per_cluster: 20, updates: {UPDATES}}}]",
]
# What a kill may not change, and how many such files a demo of two iterations must have at least.
EQUAL = {
    "codebook.npy": 8,  # two codebooks, and a copy in each of six labellings
    "feature_norm.npy": 4,
    ".u16": 6,
    ".rows.npy": 6,
    ".safetensors": 6,  # encoder and head of two exports and of the published one
    "metrics.csv": 2,
    "validation.csv": 2,
    ".flac": 200,
    ".tar": 6,
    "phones.tsv": 1,
}


def stage_name(folder: Path, directory: Path) -> str:
    """`1/train` of `stages/1/train-0123456789ab`."""
    return re.sub(r"-[0-9a-f]{12}$", "", folder.relative_to(directory / "runs/demo/stages").as_posix())


def marks(directory: Path) -> dict[str, Path]:
    """Stage → its mark, of all finished stages."""
    return {stage_name(mark.parent, directory): mark for mark in (directory / "runs/demo").glob("stages/**/stage.json")}


def identity(path: Path) -> tuple[int, int, bytes]:
    """Changes when a file is written again, be it with equal content."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, path.read_bytes()


def _main(directory: Path, command: list[str]) -> None:
    os.setsid()  # a process group of its own, which the training processes that it starts belong to
    multiprocessing.set_start_method("fork", force=True)  # as in a program of its own
    output = os.open(directory / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(directory)
    sys.argv = command
    runpy.run_module("openwavlm", run_name="__main__")


def start(directory: Path, workers: int) -> multiprocessing.process.BaseProcess:
    """The demo as a program, forked from a server that has imported everything."""
    directory.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openwavlm.runs.launch", "openwavlm.pipeline.iterate"])
    process = context.Process(target=_main, args=(directory, [*DEMO, f"workers={workers}"]))
    process.start()
    return process


def finish(directory: Path, workers: int) -> dict:
    process = start(directory, workers)
    process.join(HANG_S)
    assert process.exitcode == 0, (directory / "output.txt").read_text()[-4000:]
    return json.loads((directory / "runs/demo/summary.json").read_text())


def is_training(stage: str) -> bool:
    return re.fullmatch(r"\d+/train", stage) is not None


def announced(directory: Path, stage: str) -> int:
    """How often the stage has begun, in all launches."""
    path = directory / "output.txt"
    return path.read_text().splitlines().count(f"== {stage}") if path.is_file() else 0


def at_work(directory: Path, stage: str, before: int) -> bool:
    """Whether this launch has begun the stage; for training, whether it is half through its updates."""
    if announced(directory, stage) == before:
        return False
    if is_training(stage):
        tables = (directory / "runs/demo/stages").glob(f"{stage}-????????????/run/metrics.csv")
        return any(len(path.read_text().splitlines()) > UPDATES // 2 for path in tables)
    return True


def kill_inside(directory: Path, stage: str, delay_s: float, workers: int) -> bool:
    """Starts the demo and kills its whole group `delay_s` after the stage began; returns whether that hit the stage unfinished."""
    before = announced(directory, stage)
    process = start(directory, workers)
    wait_until(lambda: at_work(directory, stage, before), while_true=process.is_alive, poll_s=0.001)
    time.sleep(delay_s)
    if process.is_alive():
        os.killpg(process.pid, signal.SIGKILL)
    process.join(HANG_S)
    return process.exitcode == -signal.SIGKILL and stage not in marks(directory)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A demo that nobody killed, and its stages in the order in which they were made."""
    directory = tmp_path_factory.mktemp("undisturbed")
    made = finish(directory, workers=1)["this_call"]["made"]
    return directory, [stage_name(directory / "runs/demo" / name, directory) for name in made]


def kill_in_each(directory: Path, stages: list[str], reference: Path, workers: int) -> dict:
    """Kills the demo once inside each stage, in their order, and lets it end; returns the last call's summary."""
    moments = random.Random(5)
    for stage in stages:
        usual_s = json.loads(marks(reference)[stage].read_text())["seconds"]
        delay_s = 0.0 if is_training(stage) else min(2.0, moments.uniform(0.0, 0.6) * usual_s)
        before = {name: identity(mark) for name, mark in marks(directory).items()}
        for _ in range(3):
            if kill_inside(directory, stage, delay_s, workers):
                break
            # This machine was quicker than the kill: the stage is to be made, and killed, again, sooner.
            shutil.rmtree(marks(directory)[stage].parent)
            delay_s = 0.0
        else:
            pytest.fail(f"{stage} was never hit")
        assert {name: identity(mark) for name, mark in marks(directory).items() if name in before} == before
    before = {name: identity(mark) for name, mark in marks(directory).items()}
    summary = finish(directory, workers)
    made = {stage_name(directory / "runs/demo" / name, directory) for name in summary["this_call"]["made"]}
    assert made == set(marks(directory)) - set(before), "the last call makes what was left, and nothing else"
    assert {name: identity(mark) for name, mark in marks(directory).items() if name in before} == before
    return summary


def equal_files(directory: Path) -> dict[str, dict[str, bytes]]:
    """For each suffix of `EQUAL` the files that end in it, by path."""
    root = directory / "runs/demo"
    files = [path for path in root.rglob("*") if path.is_file()]
    return {
        suffix: {path.relative_to(root).as_posix(): path.read_bytes() for path in files if path.name.endswith(suffix)}
        for suffix in EQUAL
    }


def assert_same_results(directory: Path, reference: Path) -> None:
    found, expected = equal_files(directory), equal_files(reference)
    for suffix, at_least in EQUAL.items():
        assert len(expected[suffix]) >= at_least, f"{len(expected[suffix])} files end in {suffix}"
        assert found[suffix].keys() == expected[suffix].keys(), suffix
        assert [name for name in expected[suffix] if found[suffix][name] != expected[suffix][name]] == []
    for name, mark in marks(reference).items():
        first, second = (json.loads(path.read_text()) for path in (mark, marks(directory)[name]))
        assert first["key"] == second["key"]
        if name.endswith(("/masked", "/probe", "/codebook")):
            figures = [{key: value for key, value in done["result"].items() if key != "cost"} for done in (first, second)]
            assert figures[0] == figures[1], f"the figures of {name}"
    assert not list((directory / "runs/demo").rglob("*.tmp")), "nothing half-written is left"


def assert_training_went_on(directory: Path, iteration: int) -> None:
    (record,) = (directory / "runs/demo/stages").glob(f"{iteration}/train-*/run/run.json")
    assert 0 < json.loads(record.read_text())["segments"][-1]["from_step"] < UPDATES


@pytest.mark.long
def test_the_demo_killed_in_some_stages_ends_like_an_undisturbed_one(undisturbed, tmp_path):
    reference, stages = undisturbed
    # Corpus and shards are taken over as finished stages, to save half a minute; the long test kills there too.
    for folder in ("corpus-*", "shards"):
        for path in (reference / "runs/demo/stages").glob(folder):
            shutil.copytree(path, tmp_path / "runs/demo/stages" / path.name)
    chosen = ["1/labels-train", "1/train", "1/masked", "2/codebook", "report"]
    assert set(chosen) < set(stages)
    kill_in_each(tmp_path, chosen, reference, workers=1)
    assert_same_results(tmp_path, reference)
    assert_training_went_on(tmp_path, 1)


@pytest.mark.long
def test_the_demo_killed_in_every_stage_ends_like_an_undisturbed_one(undisturbed, tmp_path):
    reference, stages = undisturbed
    kinds = {name.split("/")[-1] for name in stages}
    assert {"corpus", "train", "codebook", "labels-train", "export", "masked", "probe", "result", "report"} <= kinds
    assert len(stages) >= 23 and {"1/train", "2/train"} < set(stages)
    kill_in_each(tmp_path, stages, reference, workers=2)
    assert_same_results(tmp_path, reference)
    for iteration in (1, 2):
        assert_training_went_on(tmp_path, iteration)


@pytest.mark.long
def test_a_finished_demo_makes_nothing_again(undisturbed):
    directory, stages = undisturbed
    before = {name: identity(mark) for name, mark in marks(directory).items()}
    assert set(before) == set(stages)
    assert finish(directory, workers=1)["this_call"]["made"] == []
    assert {name: identity(mark) for name, mark in marks(directory).items()} == before
