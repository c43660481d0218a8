"""The same trajectory on any number of processes, under any strategy, through kills and signals."""

import hashlib
import json
import logging
import os
import signal
import threading
from functools import partial
from pathlib import Path

import pytest
import torch

from openwavlm.runtime.watchdog import EXIT_CODE
from runs import SETTINGS, launch, make_data, table, weights

SLOTS = 5  # of which two processes pad one and four pad three
ELASTIC = [*SETTINGS, "batch.seconds=20", "callbacks.validate_every=10"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


def _record(path: Path, fault: str | None) -> None:
    """Writes each step's batches, after mixing, as hashes; optionally plants one of two normalisation faults."""
    from openwavlm.training import masked_prediction as modules
    from openwavlm.training.module import TrainingModule

    real_forward, real_backward = modules.forward_micro_batch, TrainingModule.manual_backward

    def forward_micro_batch(model, batch, mixed, **options):
        if model.training:
            line = {
                "id": f"{batch.id.epoch}/{batch.id.index}",
                "batch": batch.fingerprint(),
                "mixed": hashlib.sha256(mixed.numpy().tobytes()).hexdigest(),
                "weight": batch.weight,
                "masked": batch.num_masked,
                "rank": int(os.environ.get("RANK", "0")),
            }
            with path.with_suffix(f".{line['rank']}").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return real_forward(model, batch, mixed, **options)

    def per_rank_mean(self, loss):
        of_rank = max(1, self.local_masked) * self.control.world_size
        real_backward(self, loss * self.totals.units / of_rank)

    def missing_factor(self, loss):
        real_backward(self, loss / self.control.world_size)

    modules.forward_micro_batch = forward_micro_batch
    if fault == "per-rank means":
        real_step = TrainingModule.training_step

        def training_step(self, batch, batch_idx):
            self.local_masked = sum(micro.num_masked for micro in batch.micro_batches)
            real_step(self, batch, batch_idx)

        TrainingModule.training_step = training_step
        TrainingModule.manual_backward = per_rank_mean
    elif fault == "missing factor W":
        TrainingModule.manual_backward = missing_factor


def recorded(data: list[str], directory: Path, world_size: int, fault: str | None = None, strategy: str = "ddp"):
    """Runs 20 steps; returns per-step (loss, gradient norm), the micro-batches in slot order, and those of each rank."""
    overrides = [*ELASTIC, *data, f"trainer.strategy={strategy}"]
    codes = launch(overrides, directory / "run", world_size=world_size, patch=partial(_record, directory / "batches", fault))
    assert codes == [0] * world_size
    by_rank = [
        [json.loads(line) for line in (directory / f"batches.{rank}").read_text().splitlines()] for rank in range(world_size)
    ]
    slots = [line for lines in zip(*by_rank, strict=True) for line in lines if line["weight"]]
    return figures(directory / "run"), slots, by_rank


def figures(directory: Path) -> list[tuple[float, float]]:
    return [(float(row["loss"]), float(row["grad_norm"])) for row in table(directory)]


def largest_difference(first, second) -> float:
    return max(abs(a - b) / abs(a) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def assert_close_weights(directory: Path, other: Path) -> None:
    first, second = weights(directory), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return (*recorded(data, folder, 1), folder / "run")


@pytest.mark.parametrize(("world_size", "strategy"), [(2, "ddp"), (4, "ddp"), (2, "fsdp")])
def test_several_processes_follow_the_trajectory_of_one(data, one_process, tmp_path, world_size, strategy):
    found, slots, by_rank = recorded(data, tmp_path, world_size, strategy=strategy)
    expected, expected_slots, _, directory = one_process
    assert len(found) == 20 and len(expected_slots) == 20 * SLOTS
    for key in ("id", "batch", "mixed"):
        assert [s[key] for s in slots] == [s[key] for s in expected_slots], f"{key} differs"
    rounds = -(-SLOTS // world_size)
    masked = [[sum(x["masked"] for x in lines[i : i + rounds]) for i in range(0, 20 * rounds, rounds)] for lines in by_rank]
    assert all(len(set(step)) > 1 for step in zip(*masked, strict=True)), "the ranks' masked frames must differ at every step"
    assert sum(not line["weight"] for lines in by_rank for line in lines) == 20 * (-SLOTS % world_size), "padding slots"
    assert all(norm > 0.5 for _, norm in expected), "clipping must be active at every step"
    assert largest_difference(expected, found) < 1e-5
    for name in ("cross_entropy", "accuracy", "masked_frames"):
        pairs = zip(table(directory, "validation.csv"), table(tmp_path / "run", "validation.csv"), strict=True)
        assert all(float(a[name]) == pytest.approx(float(b[name]), rel=1e-4) for a, b in pairs), name
    assert_close_weights(directory, tmp_path / "run")


def _weigh(folder: Path) -> None:
    """Writes down how many elements of the parameters and of their moments this rank holds at the end."""
    from torch.distributed.tensor import DTensor

    from openwavlm.training.callbacks import StepBoundary

    real = StepBoundary.on_train_batch_end

    def held(tensor: torch.Tensor) -> int:
        return tensor.to_local().numel() if isinstance(tensor, DTensor) else tensor.numel()

    def on_train_batch_end(self, trainer, module, *args):
        parameters = list(module.parameters())
        moments = [state["exp_avg"] for state in module.optimizers(use_pl_optimizer=False).state.values()]
        sizes = [sum(p.numel() for p in parameters), sum(map(held, parameters)), sum(map(held, moments))]
        (folder / f"held-{os.environ['RANK']}.json").write_text(json.dumps(sizes))
        real(self, trainer, module, *args)

    StepBoundary.on_train_batch_end = on_train_batch_end


@pytest.mark.parametrize(("strategy", "share"), [("ddp", 1.0), ("fsdp", 0.5)])
def test_sharded_processes_hold_half_of_the_parameters_each(data, tmp_path, strategy, share):
    overrides = [*ELASTIC, *data, f"trainer.strategy={strategy}", "optim.updates=1"]
    assert launch(overrides, tmp_path / "run", world_size=2, patch=partial(_weigh, tmp_path)) == [0, 0]
    for rank in (0, 1):
        whole, parameters, moments = json.loads((tmp_path / f"held-{rank}.json").read_text())
        assert parameters == pytest.approx(share * whole, rel=0.1) and moments == pytest.approx(share * whole, rel=0.1)


@pytest.mark.parametrize("fault", ["per-rank means", "missing factor W"])
@pytest.mark.parametrize("strategy", ["ddp", pytest.param("fsdp", marks=pytest.mark.long)])
def test_the_comparison_detects_a_wrong_normalisation(data, one_process, tmp_path, fault, strategy):
    found, _, _ = recorded(data, tmp_path, 2, fault, strategy)
    assert largest_difference(one_process[0], found) > 1e-3


def test_validation_gives_the_same_figures_at_any_number_of_processes(data, tmp_path):
    found = []
    for world_size, strategy in ((1, "ddp"), (2, "ddp"), (4, "ddp"), (2, "fsdp")):
        overrides = [*ELASTIC, *data, "callbacks.validate_every=1", "optim.updates=1", f"trainer.strategy={strategy}"]
        directory = tmp_path / f"{strategy}-{world_size}"
        assert launch(overrides, directory, world_size=world_size) == [0] * world_size
        found.append(table(directory, "validation.csv")[0])
    assert int(found[0]["masked_frames"]) > 100
    for other in found[1:]:
        assert {name: float(value) for name, value in other.items()} == pytest.approx(
            {name: float(value) for name, value in found[0].items()}, rel=1e-6
        )


def _die(signals: dict[int, int], step: int) -> None:
    """At `step` the named ranks send themselves a signal, in the middle of the first backward."""
    from openwavlm.training.module import TrainingModule

    real, count = TrainingModule.manual_backward, [0]

    def manual_backward(self, loss, *args, **kwargs):
        rank = int(os.environ.get("RANK", "0"))
        if self.trainer.global_step == step and not count[0] and rank in signals:
            count[0] = 1
            loss.register_hook(lambda gradient: os.kill(os.getpid(), signals[rank]))
        real(self, loss, *args, **kwargs)

    TrainingModule.manual_backward = manual_backward


def newest(directory: Path) -> str:
    return sorted(path.name for path in directory.glob("checkpoints/*.ckpt"))[-1]


def test_from_four_processes_through_a_kill_to_two_through_a_signal_to_one(data, one_process, tmp_path):
    four = launch([*ELASTIC, *data], tmp_path, world_size=4, patch=partial(_die, {1: signal.SIGKILL}, 7))
    assert four[1] == -signal.SIGKILL and all(code != 0 for code in four)
    assert newest(tmp_path) == "step-00000006.ckpt"
    sharded = [*ELASTIC, *data, "trainer.strategy=fsdp"]
    assert launch(sharded, tmp_path, world_size=2, patch=partial(_die, {0: signal.SIGTERM}, 12)) == [0, 0]
    assert newest(tmp_path) == "step-00000014.ckpt", "the exchange of the next step carries the signal"
    assert launch([*ELASTIC, *data], tmp_path) == [0]
    assert largest_difference(one_process[0], figures(tmp_path)) < 1e-5
    assert_close_weights(one_process[3], tmp_path)
    segments = json.loads((tmp_path / "run.json").read_text())["segments"]
    assert [(s["from_step"], s["world_size"]) for s in segments] == [(0, 4), (6, 2), (14, 1)]


@pytest.mark.parametrize("ranks", [(0,), (1,), (0, 1)])
def test_a_signal_in_backward_ends_every_rank_within_the_step(data, tmp_path, ranks):
    asked = partial(_die, dict.fromkeys(ranks, signal.SIGTERM), 4)
    assert launch([*ELASTIC, *data], tmp_path, world_size=2, patch=asked) == [0, 0]
    step = int(newest(tmp_path)[5:13])
    assert step <= 6, "the signal came in the fifth update, the exchange of the sixth carries it"


def test_more_processes_than_micro_batches_are_refused(data, tmp_path):
    assert all(code != 0 for code in launch([*SETTINGS, *data], tmp_path, world_size=4))


def _as_srun() -> None:
    """Slurm's variables in place of torchrun's."""
    rank, port = os.environ["RANK"], os.environ["MASTER_PORT"]
    for name in ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "TORCHELASTIC_RUN_ID"):
        os.environ.pop(name)
    os.environ |= {"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"}
    os.environ |= {"SLURM_JOB_NODELIST": "localhost", "SLURM_PROCID": rank, "SLURM_LOCALID": rank, "SLURM_NODEID": "0"}
    os.environ["MASTER_PORT"] = port


def test_tasks_of_srun_train_as_processes_of_torchrun_do(data, one_process, tmp_path):
    assert launch([*ELASTIC, *data, "stop_after=3"], tmp_path, world_size=2, patch=_as_srun) == [0, 0]
    assert largest_difference(one_process[0][:3], figures(tmp_path)) < 1e-5
    assert json.loads((tmp_path / "run.json").read_text())["segments"][0]["world_size"] == 2


def _as_a_job_at_its_end(folder: Path) -> None:
    program = folder / "scontrol"
    program.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n')
    program.chmod(0o755)
    os.environ |= {"SLURM_JOB_ID": "31007", "PATH": f"{folder}:/bin:/usr/bin"}
    _die({0: signal.SIGUSR1, 1: signal.SIGUSR1}, 4)


@pytest.mark.parametrize(("option", "asked"), [("trainer.requeue=true", "requeue 31007\n"), ("trainer.requeue=false", None)])
def test_a_job_whose_time_is_nearly_up_saves_and_queues_itself_again(data, tmp_path, option, asked):
    overrides = [*ELASTIC, *data, option]
    assert launch(overrides, tmp_path / "run", world_size=2, patch=partial(_as_a_job_at_its_end, tmp_path)) == [0, 0]
    assert newest(tmp_path / "run") == "step-00000006.ckpt"
    assert ((tmp_path / "asked").read_text() if asked else (tmp_path / "asked").exists()) == (asked or False)


def _hang(rank: int, step: int) -> None:
    from openwavlm.training.module import TrainingModule

    real = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if batch.step == step and int(os.environ["RANK"]) == rank:
            threading.Event().wait(300)
        real(self, batch, batch_idx)

    TrainingModule.training_step = training_step


def test_a_hanging_rank_ends_all_and_each_says_where_it_was(data, tmp_path):
    overrides = [*ELASTIC, *data, "trainer.watchdog_s=4", "callbacks.checkpoint_every=2"]
    codes = launch(overrides, tmp_path, world_size=2, patch=partial(_hang, 1, 5))
    assert EXIT_CODE in codes and 0 not in codes
    said = [path.read_text() for path in sorted((tmp_path / "logs").glob("rank-*.log"))]
    assert "rank 1 on" in said[1] and "it is at: update 5 is done" in said[1] and "threading.py" in said[1]
    waits = ("adding up figures over all ranks", "waiting for the other ranks' masked frames")
    assert codes[0] != EXIT_CODE or any(wait in said[0] for wait in waits)
    assert launch([*ELASTIC, *data, "stop_after=6"], tmp_path, world_size=2) == [0, 0], "the same command goes on"


def _slow(rank: int) -> None:
    """On a clock that only micro-batches move, this rank takes three times as long for each as the others."""
    from openwavlm.training import masked_prediction, module

    now, prepare, pace = [0.0], masked_prediction.prepare_waveforms, module.Pace

    def prepare_waveforms(*args, **kwargs):
        now[0] += 3.0 if int(os.environ["RANK"]) == rank else 1.0
        return prepare(*args, **kwargs)

    masked_prediction.prepare_waveforms = prepare_waveforms
    module.Pace = partial(pace, now=lambda: now[0])
    logging.getLogger().setLevel(logging.INFO)


def test_the_slowest_rank_is_named(data, tmp_path):
    overrides = [*ELASTIC, *data, "logger.every_s=0.5", "optim.updates=8", "callbacks.validate_every=0"]
    assert launch(overrides, tmp_path, world_size=4, patch=partial(_slow, 2)) == [0] * 4
    lines = [line for line in (tmp_path / "logs" / "rank-0000.log").read_text().splitlines() if "slowest rank" in line]
    assert lines and all("slowest rank 2 (3.00 x the median)" in line for line in lines)
