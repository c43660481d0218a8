"""A run is a function of its config and data: not of kills or loader workers."""

import json
import logging
import math
import os
import shutil
import signal
from functools import partial
from pathlib import Path

import pytest
import torch

from openwavlm.report.content import read_iteration
from openwavlm.runs.export import export_run
from openwavlm.runs.launch import train
from patience import wait_until
from runs import SETTINGS, compose, launch, make_data, random_moments, table, weights


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    return make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("undisturbed")
    assert launch(SETTINGS + data, directory) == [0]
    return directory


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
    in_saving = iter([12, 14, 16, 19, 21])
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


def test_a_run_that_was_never_resumed_and_lost_its_checkpoints_and_one_with_another_runs_are_refused(data, undisturbed, tmp_path):
    assert launch([*SETTINGS, *data, "stop_after=3"], tmp_path) == [0]
    checkpoint = tmp_path / "checkpoints" / "step-00000003.ckpt"
    whole = {path: path.read_bytes() for path in checkpoint.parent.iterdir()}
    shutil.rmtree(checkpoint.parent)
    with pytest.raises(ValueError, match=r"checkpoints has no checkpoint, but by run\.json this run wrote one after update 3"):
        train(compose(SETTINGS + data), tmp_path)
    assert launch([*SETTINGS, *data, "seed=2", "stop_after=3"], tmp_path / "other") == [0]
    shutil.copytree(tmp_path / "other" / "checkpoints", checkpoint.parent)
    for refused in (lambda: train(compose(SETTINGS + data), tmp_path), lambda: export_run(tmp_path)):
        with pytest.raises(ValueError, match=rf"{checkpoint} was written by another run"):
            refused()
    for path, content in whole.items():
        path.write_bytes(content)
    assert launch(SETTINGS + data, tmp_path) == [0]
    assert_same_run(tmp_path, undisturbed)
    identities = {json.loads((run / "run.json").read_text())["run"] for run in (tmp_path, undisturbed)}
    assert len(identities) == 1, "an identity is a function of config and data"


def test_a_figure_that_changed_before_the_checkpoint_is_said_and_trains_on(data, undisturbed, tmp_path):
    assert launch([*SETTINGS, *data, "stop_after=9"], tmp_path) == [0]
    metrics = tmp_path / "metrics.csv"
    whole = metrics.read_text()
    lines = whole.splitlines(keepends=True)
    metrics.write_text("".join([*lines[:4], "\0" * 30, *lines[6:]]))  # updates 4 and 5
    assert launch(SETTINGS + data, tmp_path) == [0]
    (sentence,) = json.loads((tmp_path / "run.json").read_text())["segments"][-1]["damaged"].values()
    assert "metrics.csv is damaged" in sentence and "updates 4-6 have no figures" in sentence
    rows = table(undisturbed)
    assert table(tmp_path) == rows[:3] + rows[6:]
    assert "\0" in (tmp_path / "metrics.csv.damaged-9").read_text()
    assert any("updates 4-6 have no figures" in note for note in read_iteration(tmp_path).notes)
    first, second = weights(tmp_path), weights(undisturbed)
    assert all(torch.equal(first[name], second[name]) for name in first)


def _signal_at_step_seven() -> None:
    from openwavlm.training.module import TrainingModule

    real = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if batch.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, batch, batch_idx)

    TrainingModule.training_step = training_step


def test_a_signal_saves_at_the_step_boundary_and_the_run_goes_on_as_if_nothing_was(data, undisturbed, tmp_path):
    assert launch(SETTINGS + data, tmp_path, patch=_signal_at_step_seven) == [0]
    assert [p.name for p in sorted(tmp_path.glob("checkpoints/*.ckpt"))][-1] == "step-00000008.ckpt"
    assert launch(SETTINGS + data, tmp_path) == [0]
    assert_same_run(tmp_path, undisturbed)


def _terminate_the_group_at_step_seven() -> None:
    from openwavlm.training.module import TrainingModule

    os.setpgrp()
    real = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if batch.step == 7:
            os.killpg(0, signal.SIGTERM)
        real(self, batch, batch_idx)

    TrainingModule.training_step = training_step


def test_a_signal_to_the_whole_process_group_leaves_the_workers_at_work(data, tmp_path):
    overrides = [*SETTINGS, *data, "loader.workers=2", "callbacks.validate_every=0"]
    assert launch(overrides, tmp_path, patch=_terminate_the_group_at_step_seven) == [0]
    assert [p.name for p in sorted(tmp_path.glob("checkpoints/*.ckpt"))][-1] == "step-00000008.ckpt"


def _die_at_step_five(note: Path) -> None:
    from openwavlm.training.module import TrainingModule

    os.setpgrp()
    note.write_text(str(os.getpid()))
    real = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if batch.step == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        real(self, batch, batch_idx)

    TrainingModule.training_step = training_step


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
    wait_until(lambda: not living(group))


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


def _ask_at_update_three(name: str) -> None:
    from openwavlm.training.module import TrainingModule

    real = TrainingModule.training_step

    def training_step(self, batch, batch_idx):
        if batch.step == 2:
            (Path(self.trainer.default_root_dir) / name).touch()
        real(self, batch, batch_idx)

    TrainingModule.training_step = training_step
    logging.getLogger().setLevel(logging.INFO)


@pytest.mark.parametrize(("name", "steps"), [("stop", [3]), ("save_now", [3, 20])])
def test_a_file_touched_in_the_run_directory_is_heard_once(data, tmp_path, name, steps):
    overrides = [*SETTINGS, *data, "callbacks.checkpoint_every=100"]
    assert launch(overrides, tmp_path, patch=partial(_ask_at_update_three, name)) == [0]
    assert sorted(int(path.stem[5:]) for path in tmp_path.glob("checkpoints/*.ckpt")) == steps
    assert not (tmp_path / name).exists()
    stopped = "stopped after update 3 of 20 by the file stop" in (tmp_path / "logs" / "rank-0000.log").read_text()
    assert stopped == (name == "stop")


def test_a_request_from_before_the_launch_is_forgotten(data, tmp_path):
    (tmp_path / "stop").touch()
    assert launch([*SETTINGS, *data, "stop_after=4"], tmp_path) == [0]
    assert len(table(tmp_path)) == 4 and not (tmp_path / "stop").exists()


def test_a_warning_of_slurm_during_start_up_saves_and_stops_after_the_first_update(data, tmp_path):
    assert launch([*SETTINGS, *data], tmp_path, patch=_warn_while_data_are_opened) == [0]
    assert [path.name for path in tmp_path.glob("checkpoints/*.ckpt")] == ["step-00000001.ckpt"]


def _warn_while_data_are_opened() -> None:
    from openwavlm.runs import beginning

    real = beginning.open_data

    def opened(*arguments):
        os.kill(os.getpid(), signal.SIGUSR1)
        return real(*arguments)

    beginning.open_data = opened


STABLE = [
    "loss.unmasked=0",
    "loss.logmel=0",
    "optim.schedule=wsd",
    "optim.decay_share=0.2",
    "callbacks.keep_every=6",
    "callbacks.keep_last=1",
    "optim.ema=0.9",
]


def test_a_branch_follows_its_stem_and_then_decays(data, tmp_path):
    stem, branch = tmp_path / "stem", tmp_path / "branch"
    overrides = [*SETTINGS, *data, *STABLE, "optim.final_share=0"]
    assert launch([*overrides, "optim.updates=40", "stop_after=14"], stem) == [0]
    assert sorted(int(path.stem[5:]) for path in stem.glob("checkpoints/*.ckpt")) == [6, 12, 14]
    ends = [*overrides, "optim.updates=15", f"branch_from={stem / 'checkpoints/step-00000012.ckpt'}"]
    branch.mkdir()
    (branch / "metrics.csv").write_bytes((stem / "metrics.csv").read_bytes()[:300])  # killed while it was copied
    assert launch(ends, branch) == [0]
    first, second = table(stem), table(branch)
    assert [row["lr"] for row in first] == ["0.001"] * 14
    assert second[:12] == first[:12] and [int(row["step"]) for row in second] == list(range(1, 16))
    assert second[12] == first[12], "the update before the decay is that of the stem"
    assert float(second[13]["lr"]) == pytest.approx(1e-3 * 2 / 3), "and then the rate falls"
    assert launch([*overrides, "optim.updates=15", "seed=3", ends[-1]], tmp_path / "other") == [1], "another seed is no branch"
    for updates in (12, 14):  # at its end; inside its decay
        assert launch([*overrides, f"optim.updates={updates}", ends[-1]], tmp_path / f"to-{updates}") == [1]
        assert not (tmp_path / f"to-{updates}" / "config.yaml").exists(), "what is refused binds nothing"


def test_a_running_mean_may_begin_at_a_branch(data, tmp_path):
    stem, branch = tmp_path / "stem", tmp_path / "branch"
    overrides = [*SETTINGS, *data, *STABLE, "optim.ema=0", "optim.updates=40"]
    assert launch([*overrides, "stop_after=6"], stem) == [0]
    start = [f"branch_from={stem / 'checkpoints/step-00000006.ckpt'}", "optim.ema=0.9", "allow_change=[optim.ema]"]
    assert launch([*overrides, *start, "stop_after=7"], branch) == [0]
    before, after = weights(stem, 6), weights(branch, 7)
    name, share = "wavlm.encoder.layers.0.attention.query.weight", 1 - min(0.9, 7 / 16)
    expected = before[f"model.{name}"].lerp(after[f"model.{name}"], share)
    torch.testing.assert_close(after[f"ema.{name}"], expected)
    other = [*overrides, f"branch_from={branch / 'checkpoints/step-00000007.ckpt'}", "allow_change=[optim.ema]", "stop_after=8"]
    assert launch(other, tmp_path / "without") == [0]
    assert not [name for name in weights(tmp_path / "without", 8) if name.startswith("ema.")]


def test_the_running_mean_is_kept_and_exported(data, tmp_path):
    from openwavlm.runs.export import load_run

    assert launch([*SETTINGS, *data, "optim.ema=0.9", "optim.updates=3", "stop_after=2"], tmp_path) == [0]
    earlier = weights(tmp_path, 2)
    assert launch([*SETTINGS, *data, "optim.ema=0.9", "optim.updates=3"], tmp_path) == [0]
    state = weights(tmp_path, 3)
    name = "wavlm.encoder.layers.0.attention.query.weight"
    share = 1 - min(0.9, 3 / 12)
    torch.testing.assert_close(state[f"ema.{name}"], earlier[f"ema.{name}"].lerp(state[f"model.{name}"], share))
    assert torch.equal(load_run(tmp_path, weights="ema")[0].state_dict()[name], state[f"ema.{name}"])
    assert torch.equal(load_run(tmp_path)[0].state_dict()[name], state[f"model.{name}"])
