"""Launches training runs in fresh processes that start in a second: a fork server that has imported everything already."""

import csv
import faulthandler
import multiprocessing
import os
import random
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from patience import HANG_S
from synthetic import make_shard_set

if TYPE_CHECKING:
    import torch

TINY_MODEL = [
    "model.conv_dims=[8,8,8]",
    "model.dim=16",
    "model.ffn_dim=32",
    "model.heads=2",
    "model.layers=2",
    "model.positional_kernel=8",
    "model.positional_groups=2",
    "model.head.final_dim=8",
]


_WHERE_ARE_YOU = signal.SIGUSR2

SETTINGS = [
    "experiment=wavlm_nano",
    "name=test",
    *TINY_MODEL,
    "model.dropout=0.1",
    "model.layer_drop=0.2",
    "mixing.prob=0.6",
    "mixing.noise_prob=0.3",
    "batch.seconds=12",
    "batch.micro_seconds=4",
    "batch.max_seconds=2",
    "optim.lr=1e-3",
    "optim.updates=20",
    "optim.warmup_updates=0",
    "optim.final_share=1.0",
    "optim.clip_norm=0.5",
    "callbacks.checkpoint_every=3",
    "callbacks.validate_every=5",
    "callbacks.unmasked_every=4",
    "data.validation_share=0.3",
    "loader.workers=0",
    "loss.unmasked=0.5",
    "loss.logmel=0.5",
]  # everything that is random is on, and clipping is active at every step


def make_data(folder: Path) -> list[str]:
    """Overrides that name a small labelled corpus and a noise bank."""
    from openwavlm.labels.assign import assign_labels
    from openwavlm.labels.fit import fit_codebook

    shards = make_shard_set(folder, speakers=8, utterances=4, seconds=(1.0, 4.0))
    noise = make_shard_set(folder / "noise", speakers=2, utterances=3, seconds=(0.5, 2.0), seed=9)
    fit_codebook([shards], folder / "codebook", clusters=10, engine="minibatch", min_frames_per_cluster=20, validation_share=0.3)
    assign_labels(shards, folder / "codebook", folder / "labels")
    return [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={folder / 'labels'}", f"data.noise={noise}"]


def phone_times(shards: Path, table: Path) -> None:
    """A made-up alignment: two phones that take turns, by a clock."""
    from openwavlm.shards.index import Index

    index = Index.open(shards)
    lines = [] if table.exists() else ["path\tstart\tend\tphone"]
    for row in range(len(index)):
        name = index.recordings[int(index.recording[row])].split("/", 1)[-1]
        seconds = int(index.num_samples[row]) / 16_000
        borders = np.arange(0, seconds, 0.2)
        lines += [f"{name}.flac\t{start:.2f}\t{min(start + 0.2, seconds):.2f}\t{'ab'[n % 2]}" for n, start in enumerate(borders)]
    with table.open("a") as file:
        file.write("\n".join(lines) + "\n")


def make_probes(folder: Path, every: int = 4) -> list[str]:
    """Overrides that probe a run on made-up speech of two voices, with probes fitted on two others."""
    train = make_shard_set(folder / "train", speakers=2, utterances=3, seconds=(1.0, 2.0), seed=21, source="fit")
    dev = make_shard_set(folder / "dev", speakers=2, utterances=3, seconds=(1.0, 2.0), seed=22, source="judge")
    for shards in (train, dev):
        phone_times(shards, folder / "phones.tsv")
    places = [f"probes.train={train}", f"probes.dev={dev}", f"probes.alignments={folder / 'phones.tsv'}"]
    return [*places, f"probes.every={every}"]


def table(directory: Path, name: str = "metrics.csv") -> list[dict[str, str]]:
    """The rows of one of a run's records."""
    return list(csv.DictReader((directory / name).read_text().splitlines()))


def weights(directory: Path, step: int = 20) -> "dict[str, torch.Tensor]":
    """Everything that the checkpoint after `step` updates calls its state dict."""
    import torch

    return torch.load(directory / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)["state_dict"]


def compose(overrides: list[str]) -> Any:
    """The training config as `train.py` would compose it."""
    from hydra import compose, initialize_config_dir

    from openwavlm.runs.compose import conf_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides)


def _kill_at_fsync(count: int) -> None:
    real, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == count:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync


def _main(
    overrides: list[str],
    directory: Path,
    environment: dict[str, str],
    fsync: int | None,
    patch: Callable[[], None] | None,
    stacks: Path,
    begin: Callable[[list[str], Path], None],
) -> None:
    import logging

    import torch

    faulthandler.register(_WHERE_ARE_YOU, stacks.open("w"), all_threads=True)
    logging.basicConfig(level=logging.ERROR)
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # as in an ordinary process, not the fork server of this test
    os.environ.update(environment)
    if fsync:
        _kill_at_fsync(fsync)
    if patch:
        patch()
    begin(overrides, directory)


def pretrain(overrides: list[str], directory: Path) -> None:
    """Trains as `train.py` does."""
    from openwavlm.runs.launch import train

    train(compose(overrides), directory)


def launch(
    overrides: list[str],
    directory: Path,
    *,
    world_size: int = 1,
    kill_after: float | None = None,
    kill_at_fsync: int | None = None,
    patch: Callable[[], None] | None = None,
    patience: float = HANG_S,
    begin: Callable[[list[str], Path], None] = pretrain,
) -> list[int]:
    """Runs a launch to its end or its death; returns the exit codes of its processes.

    Raises:
        AssertionError: If a process is still there after `patience` seconds, with the stacks of all; they are killed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openwavlm.runs.launch"])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    folder = Path(tempfile.mkdtemp(prefix="stacks-"))
    for rank in range(world_size):
        environment = {}
        if world_size > 1:
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "GROUP_RANK": "0",
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
                "TORCHELASTIC_RUN_ID": "test",
            }
        process = context.Process(
            target=_main, args=(overrides, directory, environment, kill_at_fsync, patch, folder / f"{rank}", begin)
        )
        process.start()
        processes.append(process)
    if kill_after is not None:
        time.sleep(kill_after)
        for process in processes:
            process.kill()
    deadline = time.monotonic() + patience
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
    codes = [process.exitcode for process in processes]
    if None in codes:
        raise AssertionError(f"hangs, exit codes {codes}\n{_stacks(processes, folder)}")
    shutil.rmtree(folder, ignore_errors=True)
    return codes


def _stacks(processes: list[Any], folder: Path) -> str:
    """Where the processes that are still there are, which are killed then."""
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, _WHERE_ARE_YOU)
    time.sleep(2)
    for process in processes:
        process.kill()
    return "\n".join(f"rank {path.name}\n{path.read_text()}" for path in sorted(folder.iterdir()))


def random_moments(count: int, longest: float, seed: int) -> list[float]:
    """Seconds after a launch at which to kill it."""
    generator = random.Random(seed)
    return [generator.uniform(0.2, longest) for _ in range(count)]
