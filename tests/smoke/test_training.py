"""A run is a function of its config and data: not of kills, workers or processes."""

import csv
import hashlib
import json
import math
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from runs import TINY_MODEL, launch, random_moments
from synthetic import make_shard_set

SETTINGS = [
    "experiment=nano",
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
]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Overrides that name a small labelled corpus and a noise bank."""
    from openwavlm.labelling.assign import assign_labels
    from openwavlm.labelling.fit import fit_codebook

    folder = tmp_path_factory.mktemp("data")
    shards = make_shard_set(folder, speakers=8, utterances=4, seconds=(1.0, 4.0))
    noise = make_shard_set(folder / "noise", speakers=2, utterances=3, seconds=(0.5, 2.0), seed=9)
    fit_codebook([shards], folder / "codebook", clusters=10, validation_share=0.3)
    assign_labels(shards, folder / "codebook", folder / "labels")
    return [f"data.sources.speech.shards={shards}", f"data.sources.speech.labels={folder / 'labels'}", f"data.noise={noise}"]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    assert launch(SETTINGS + data, directory) == [0]
    return directory


def table(directory: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((directory / "metrics.csv").read_text().splitlines()))


def weights(directory: Path, step: int = 20) -> dict[str, torch.Tensor]:
    return torch.load(directory / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)["state_dict"]


def assert_same_run(directory: Path, other: Path) -> None:
    assert (directory / "metrics.csv").read_bytes() == (other / "metrics.csv").read_bytes()
    assert (directory / "validation.csv").read_bytes() == (other / "validation.csv").read_bytes()
    first, second = weights(directory), weights(other)
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_writes_one_row_an_update_and_its_summary(undisturbed):
    rows = table(undisturbed)
    assert [int(row["step"]) for row in rows] == list(range(1, 21))
    assert all(math.isfinite(float(row["loss"])) and row["void"] == "0" for row in rows)
    assert [bool(row["unmasked_accuracy"]) for row in rows] == [step % 4 == 0 for step in range(1, 21)]
    assert sum(int(row["mixed_rows"]) for row in rows) > 20
    summary = json.loads((undisturbed / "summary.json").read_text())
    assert summary["complete"] and summary["validation"]["step"] == 20


def test_a_run_killed_at_ten_moments_equals_an_undisturbed_one(data, undisturbed, tmp_path):
    in_saving = iter([4, 6, 9, 11, 13])
    starts = []
    for number, moment in enumerate(random_moments(10, 2.5, seed=3)):
        overrides = [*SETTINGS, *data, f"loader.workers={number % 3}"]
        if number % 2:
            launch(overrides, tmp_path, kill_at_fsync=next(in_saving))
        else:
            launch(overrides, tmp_path, kill_after=moment)
        starts.append(sorted(path.name for path in tmp_path.glob("checkpoints/*")))
    assert launch(SETTINGS + data, tmp_path) == [0]
    assert_same_run(tmp_path, undisturbed)
    segments = json.loads((tmp_path / "run.json").read_text())["segments"]
    assert len({segment["from_step"] for segment in segments}) >= 3, "the kills must have hit the run at work"


@pytest.mark.parametrize("workers", [2])
def test_the_number_of_loader_workers_changes_nothing(data, undisturbed, tmp_path, workers):
    assert launch([*SETTINGS, *data, f"loader.workers={workers}"], tmp_path) == [0]
    assert_same_run(tmp_path, undisturbed)


def test_validation_and_its_schedule_touch_no_training_draw(data, undisturbed, tmp_path):
    assert launch([*SETTINGS, *data, "callbacks.validate_every=0", "callbacks.unmasked_every=0"], tmp_path) == [0]
    first, second = weights(tmp_path), weights(undisturbed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_damaged_newest_checkpoint_is_passed_over(data, undisturbed, tmp_path):
    assert launch([*SETTINGS, *data, "stop_after=12"], tmp_path) == [0]
    newest = sorted(tmp_path.glob("checkpoints/*.ckpt"))[-1]
    assert newest.name == "step-00000012.ckpt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 255
    newest.write_bytes(bytes(content))
    assert launch(SETTINGS + data, tmp_path) == [0]
    assert json.loads((tmp_path / "run.json").read_text())["segments"][-1]["from_step"] == 9
    assert_same_run(tmp_path, undisturbed)


def _signal_at_step_seven() -> None:
    from openwavlm.training.module import PretrainingModule

    real = PretrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if batch.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, batch, batch_idx)

    PretrainingModule.training_step = training_step


def test_a_signal_saves_at_the_step_boundary_and_the_run_goes_on_as_if_nothing_was(data, undisturbed, tmp_path):
    assert launch(SETTINGS + data, tmp_path, patch=_signal_at_step_seven) == [0]
    assert [p.name for p in sorted(tmp_path.glob("checkpoints/*.ckpt"))][-1] == "step-00000008.ckpt"
    assert launch(SETTINGS + data, tmp_path) == [0]
    assert_same_run(tmp_path, undisturbed)


def _terminate_the_group_at_step_seven() -> None:
    from openwavlm.training.module import PretrainingModule

    os.setpgrp()
    real = PretrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if batch.step == 7:
            os.killpg(0, signal.SIGTERM)
        real(self, batch, batch_idx)

    PretrainingModule.training_step = training_step


def test_a_signal_to_the_whole_process_group_leaves_the_workers_at_work(data, tmp_path):
    overrides = [*SETTINGS, *data, "loader.workers=2", "callbacks.validate_every=0"]
    assert launch(overrides, tmp_path, patch=_terminate_the_group_at_step_seven) == [0]
    assert [p.name for p in sorted(tmp_path.glob("checkpoints/*.ckpt"))][-1] == "step-00000008.ckpt"


def _die_at_step_five(note: Path) -> None:
    from openwavlm.training.module import PretrainingModule

    os.setpgrp()
    note.write_text(str(os.getpid()))
    real = PretrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if batch.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, batch, batch_idx)

    PretrainingModule.training_step = training_step


def living(group: int) -> list[int]:
    """Processes of a group that are not merely waiting to be reaped."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, process_group = path.read_text().rsplit(")", 1)[1].split()[:3]
        except OSError:
            continue
        if int(process_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def test_the_workers_of_a_killed_run_end_with_it(data, tmp_path):
    overrides = [*SETTINGS, *data, "loader.workers=2", "loader.prefetch=16", "callbacks.validate_every=0"]
    assert launch(overrides, tmp_path / "run", patch=partial(_die_at_step_five, tmp_path / "pid")) == [-signal.SIGKILL]
    group = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 20
    while living(group) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not living(group)


def test_a_change_of_the_plan_begins_the_next_data_epoch(data, tmp_path):
    assert launch([*SETTINGS, *data, "stop_after=9"], tmp_path) == [0]
    before = torch.load(tmp_path / "checkpoints" / "step-00000009.ckpt", weights_only=True)["openwavlm"]["plan"]
    begun = len(before["streams"]["speech"][0]["starts"])
    changed = [*SETTINGS, *data, "batch.micro_seconds=6", "batch.seconds=18"]
    assert launch(changed, tmp_path) == [1], "not without being allowed"
    assert launch([*changed, "allow_change=[batch]", "stop_after=12"], tmp_path) == [0]
    after = torch.load(tmp_path / "checkpoints" / "step-00000012.ckpt", weights_only=True)["openwavlm"]["plan"]
    assert after["origin"] == 9 and after["streams"]["speech"][0]["first_epoch"] == begun
    assert launch(changed, tmp_path) == [0]
    assert [int(row["step"]) for row in table(tmp_path)] == list(range(1, 21))


def test_a_finished_run_is_extended_by_an_allowed_change(data, undisturbed, tmp_path):
    shutil.copytree(undisturbed, tmp_path / "run")
    longer = [*SETTINGS, *data, "optim.updates=24", "allow_change=[optim.updates]"]
    assert launch(longer, tmp_path / "run") == [0]
    assert [int(row["step"]) for row in table(tmp_path / "run")] == list(range(1, 25))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["segments"][-1]["changes"] == {"optim.updates": [20, 24]}


def test_touching_stop_in_the_run_directory_stops_it(data, tmp_path):
    (tmp_path / "stop").touch()
    assert launch(SETTINGS + data, tmp_path) == [0]
    assert [p.name for p in tmp_path.glob("checkpoints/*.ckpt")] == ["step-00000001.ckpt"]
    assert not (tmp_path / "stop").exists()


# --- the same trajectory on any number of processes -----------------------------------------------------------------


def _record(path: Path, fault: str | None) -> None:
    """Writes each step's batches, after mixing, as hashes; optionally plants one of two normalisation faults."""
    from openwavlm.training import module as modules
    from openwavlm.training.module import PretrainingModule

    real_forward, real_loss = modules.forward_micro_batch, PretrainingModule._loss

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

    def per_rank_mean(self, output, logmel_error, micro, masked_frames, warm):
        return real_loss(self, output, logmel_error, micro, max(1, self.local_masked) * self.control.world_size, warm)

    def missing_factor(self, output, logmel_error, micro, masked_frames, warm):
        return real_loss(self, output, logmel_error, micro, masked_frames, warm) / self.control.world_size

    modules.forward_micro_batch = forward_micro_batch
    if fault == "per-rank means":
        real_step = PretrainingModule.training_step

        def training_step(self, batch, batch_idx):
            self.local_masked = sum(micro.num_masked for micro in batch.micro_batches)
            real_step(self, batch, batch_idx)

        PretrainingModule.training_step = training_step
        PretrainingModule._loss = per_rank_mean
    elif fault == "missing factor W":
        PretrainingModule._loss = missing_factor


def recorded(data: list[str], directory: Path, world_size: int, fault: str | None = None):
    """Runs 20 steps; returns per-step (loss, gradient norm) and the micro-batches in slot order."""
    codes = launch(
        SETTINGS + data, directory / "run", world_size=world_size, patch=partial(_record, directory / "batches", fault)
    )
    assert codes == [0] * world_size
    rows = table(directory / "run")
    by_rank = [
        [json.loads(line) for line in (directory / f"batches.{rank}").read_text().splitlines()] for rank in range(world_size)
    ]
    slots = [line for lines in zip(*by_rank, strict=True) for line in lines if line["weight"]]
    return [(float(row["loss"]), float(row["grad_norm"])) for row in rows], slots, by_rank


def largest_difference(first, second) -> float:
    return max(abs(a - b) / abs(a) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory):
    return recorded(data, tmp_path_factory.mktemp("one"), 1)


def test_two_processes_follow_the_trajectory_of_one(data, one_process, tmp_path):
    figures, slots, by_rank = recorded(data, tmp_path, 2)
    expected, expected_slots, _ = one_process
    assert len(figures) == 20 and len(expected_slots) == 60, "20 steps of three micro-batches"
    for key in ("id", "batch", "mixed"):
        assert [s[key] for s in slots] == [s[key] for s in expected_slots], f"{key} differs"
    unequal = [
        sum(x["masked"] for x in by_rank[0][i : i + 2]) != sum(x["masked"] for x in by_rank[1][i : i + 2])
        for i in range(0, 40, 2)
    ]
    assert all(unequal), "the ranks must have unequal masked-frame counts for this test to mean anything"
    assert all(norm > 0.5 for _, norm in expected), "clipping must be active at every step"
    assert largest_difference(expected, figures) < 1e-5


@pytest.mark.parametrize("fault", ["per-rank means", "missing factor W"])
def test_the_comparison_detects_a_wrong_normalisation(data, one_process, tmp_path, fault):
    figures, _, _ = recorded(data, tmp_path, 2, fault)
    assert largest_difference(one_process[0], figures) > 1e-3


def test_a_run_goes_on_with_other_numbers_of_processes(data, one_process, tmp_path):
    for world_size, stop in ((2, 6), (1, 13), (3, 20)):
        assert launch([*SETTINGS, *data, f"stop_after={stop}"], tmp_path, world_size=world_size) == [0] * world_size
    rows = table(tmp_path)
    figures = [(float(row["loss"]), float(row["grad_norm"])) for row in rows]
    assert largest_difference(one_process[0], figures) < 1e-5
    segments = json.loads((tmp_path / "run.json").read_text())["segments"]
    assert [(s["from_step"], s["world_size"]) for s in segments] == [(0, 2), (6, 1), (13, 3)]


def test_more_processes_than_micro_batches_are_refused(data, tmp_path):
    assert all(code != 0 for code in launch(SETTINGS + data, tmp_path, world_size=4))
