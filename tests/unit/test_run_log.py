"""What a run writes down: each figure by its formula, the progress line by a clock of the test, and what a step boundary does when."""

import contextlib
import csv
import errno
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openwavlm.training.callbacks import StepBoundary
from openwavlm.training.control import StepTotals
from openwavlm.training.log import RunLog
from openwavlm.training.log_file import write_log
from openwavlm.training.masked_figures import MaskedFigures, metrics_row
from openwavlm.training.module import TrainingModule
from openwavlm.training.settings import Logging, Schedules
from openwavlm.training.sums import SUMS, StepRecord

# Every sum differs from every other, so that no denominator can stand in for another one.
RAW = {
    "cross_entropy": 1200.0,
    "correct": 100.0,
    "masked": 400.0,
    "penalty": 20.0,
    "unmasked_correct": 90.0,
    "unmasked": 300.0,
    "samples": 320_000.0,
    "padded_samples": 400_000.0,
    "rows": 7.0,
    "unreadable": 2.0,
    "mixtures": 3.0,
    "mask_frames": 500.0,
    "valid_frames": 1000.0,
    "logmel_error": 0.0,
}


def record(step: int = 5, *, grad_norm: float = 2.0, with_unmasked: bool = True, **sums: float) -> StepRecord:
    return StepRecord(step, RAW | sums, grad_norm, 1e-3, with_unmasked)


def test_every_figure_of_an_update_is_its_sum_over_its_own_count():
    assert set(RAW) == set(SUMS)
    row = metrics_row(record(), penalty_weight=10.0)
    expected = {
        "step": 5,
        "loss": 1200 / 400 + 10 * 20 / 400,
        "cross_entropy": 3.0,
        "accuracy": 0.25,
        "unmasked_accuracy": 0.3,
        "feature_penalty": 0.05,
        "logmel_error": None,
        "grad_norm": 2.0,
        "lr": 1e-3,
        "masked_frames": 400,
        "mask_coverage": 0.5,
        "mixed_rows": 3,
        "rows": 7,
        "audio_s": 20.0,
        "padding_share": 0.2,
        "unreadable_rows": 2,
        "void": 0,
    }
    assert list(row) == list(expected)
    assert row == {name: value if value is None else pytest.approx(value) for name, value in expected.items()}


def test_what_was_not_measured_is_empty_and_the_log_mel_error_is_a_mean_over_masked_frames():
    assert metrics_row(record(with_unmasked=False), 10.0)["unmasked_accuracy"] is None
    assert metrics_row(record(unmasked=0.0), 10.0)["unmasked_accuracy"] is None
    assert metrics_row(record(logmel_error=100.0), 10.0)["logmel_error"] == 0.25
    nothing = metrics_row(record(**dict.fromkeys(SUMS, 0.0)), 10.0)
    assert (nothing["loss"], nothing["mask_coverage"]) == (0.0, 0.0), "an update without a readable row"


@pytest.mark.parametrize(("norm", "void"), [(1e30, 0), (float("inf"), 1), (float("nan"), 1)])
def test_an_update_whose_gradient_is_not_finite_is_void(norm, void):
    assert metrics_row(record(grad_norm=norm), 10.0)["void"] == void


def test_the_loss_is_the_weighted_sum_over_label_sets_and_each_set_has_its_figures():
    further = {"cross_entropy_2": 800.0, "correct_2": 40.0, "cross_entropy_3": 400.0, "correct_3": 20.0}
    row = metrics_row(record(**further), 10.0, (0.5, 0.3, 0.2))
    assert row["loss"] == pytest.approx(0.5 * 3 + 0.3 * 2 + 0.2 * 1 + 10 * 0.05)
    assert [row[name] for name in ("cross_entropy", "cross_entropy_2", "cross_entropy_3")] == [3.0, 2.0, 1.0]
    assert [row[name] for name in ("accuracy", "accuracy_2", "accuracy_3")] == [0.25, 0.1, 0.05]


# --- records, TensorBoard and the progress line ----------------------------------------------------------------------------


class Taker:
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.taken: list[tuple[int, dict[str, float]]] = []
        self.closed = False

    def scalars(self, values: dict[str, float], step: int) -> None:
        self.taken.append((step, values))

    def close(self) -> None:
        self.closed = True


class Clocked:
    """A log of a run of 100 updates, by a clock of the test."""

    def __init__(self, directory: Path, *, last_step: int = 0, every_s: float = 10.0) -> None:
        self.seconds, self.taker = 1000.0, Taker()
        settings = Logging(every_s=every_s, tensorboard_every=4)
        self.log = RunLog(
            directory,
            settings,
            last_step=last_step,
            updates=100,
            figures=MaskedFigures(10.0),
            trackers=[self.taker],
            now=lambda: self.seconds,
        )

    def update(self, step: int, seconds: float, **sums: float) -> None:
        self.seconds += seconds
        self.log.update(record(step, **sums))


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [entry.getMessage() for entry in caplog.records if entry.getMessage().startswith("step ")]


def test_the_progress_line_has_the_speed_and_the_time_left_since_the_line_before(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    clocked = Clocked(tmp_path, last_step=50)
    for step in range(51, 61):  # 20 s of audio each; a line after five and after ten
        clocked.update(step, 2.0 if step <= 55 else 4.0)
    clocked.log.close()
    first, second = lines(caplog)
    # 10 s for 5 updates: 2 s an update, 45 left; then 12 s for 3, whose 60 s of audio are 5 a second.
    assert first.startswith(
        "step 55/100 | loss 3.500 | masked accuracy 0.250 | grad norm 2.00 | lr 1.00e-03 | 10 audio-s/s | 0:01:30 left"
    )
    assert second.startswith("step 58/100 |") and second.endswith("| 5 audio-s/s | 0:02:48 left")
    assert [(step, values) for step, values in clocked.taker.taken if "speed/audio_s_per_s" in values] == [
        (55, {"speed/audio_s_per_s": 10.0}),
        (58, {"speed/audio_s_per_s": 5.0}),
    ]


def test_the_last_update_has_a_line_of_its_own_and_hours_are_hours(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    clocked = Clocked(tmp_path, last_step=97)
    clocked.update(98, 3661.0)
    clocked.update(99, 1.0)
    clocked.update(100, 1.0)
    clocked.log.close()
    assert [line.split("|")[0].strip() for line in lines(caplog)] == ["step 98/100", "step 100/100"]
    assert lines(caplog)[0].endswith("2:02:02 left") and lines(caplog)[1].endswith("0:00:00 left")


def test_the_slowest_rank_is_that_of_the_times_since_the_line_before(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    clocked = Clocked(tmp_path, every_s=1.0)
    for own_us in ((10, 90, 10, 10), (20, 10, 30, 10)):
        clocked.log.paces(own_us)
    clocked.update(1, 2.0)  # 30, 100, 40, 20: of four times the lower middle one is 30
    clocked.log.paces((50, 10, 10, 10))
    clocked.update(2, 2.0)
    clocked.log.paces((0, 0, 0, 0))
    clocked.update(3, 2.0)
    clocked.log.paces((70,))
    clocked.update(4, 2.0)
    clocked.log.close()
    ends = [line.partition(" left")[2] for line in lines(caplog)]
    assert ends == [" | slowest rank 1 (3.33 x the median)", " | slowest rank 0 (5.00 x the median)", "", ""]


def test_a_log_file_that_cannot_be_written_costs_one_line_and_not_the_run(tmp_path, capsys):
    handler = write_log(tmp_path, 0)
    logger = logging.getLogger("test")
    try:
        with Path("/dev/full").open("w") as full:
            os.dup2(full.fileno(), handler.stream.fileno())
        for number in range(3):
            logger.warning("message %d", number)
    finally:
        handler.close()
    assert handler not in logging.getLogger().handlers
    told = capsys.readouterr().err
    assert told.count("rank-0000.log cannot be written (No space left on device)") == 1 and "Traceback" not in told


def test_a_tensorboard_that_cannot_be_written_is_one_error_with_the_folder(tmp_path, monkeypatch, capfd):
    from tensorboard.summary.writer import record_writer

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = Clocked(tmp_path)
    monkeypatch.setattr(record_writer.RecordWriter, "write", refuse)
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{tmp_path / 'tensorboard'}'")):
        for step in range(4, 100, 4):
            log.update(step, 1.0)
            log.log.sync()
    with contextlib.suppress(OSError):
        log.log.close()
    assert "Traceback" not in capfd.readouterr().err


def test_trackers_get_the_figures_that_are_there_at_every_nth_update_and_are_closed(tmp_path):
    clocked = Clocked(tmp_path, every_s=1e9)
    for step in range(1, 10):
        clocked.update(step, 1.0)
    clocked.log.close()
    assert [step for step, _ in clocked.taker.taken] == [4, 8] and clocked.taker.closed
    known = clocked.taker.taken[0][1]
    assert known["train/loss"] == pytest.approx(3.5) and known["train/audio_s"] == 20.0
    assert "train/logmel_error" not in known and "train/step" not in known
    assert clocked.log.audio_s_total == 9 * 20.0


def test_a_resumed_log_cuts_what_lies_past_its_checkpoint_and_goes_on(tmp_path):
    for last_step, end in ((0, 8), (5, 7)):
        clocked = Clocked(tmp_path, last_step=last_step)
        for step in range(last_step + 1, end + 1):
            clocked.update(step, 0.0, masked=400.0 + last_step)
        clocked.log.finding({"step": end, "rule": "unigram", "value": 1.0, "threshold": 2.0, "sentence": "so, it is"})
        clocked.log.probes(end, [0.25, 0.5], {"mfcc": 0.3}, 1.0)
        clocked.log.sync()
        clocked.log.close()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert [(row["step"], row["masked_frames"]) for row in rows] == [
        *((str(step), "400") for step in range(1, 6)),
        *((str(step), "405") for step in range(6, 8)),
    ]
    assert [(row["step"], row["sentence"]) for row in csv.DictReader((tmp_path / "health.csv").read_text().splitlines())] == [
        ("7", "so, it is")
    ]
    assert (tmp_path / "probes.csv").read_text() == "step,layer_0,layer_1\n7,0.25,0.5\n"


def test_tensorboard_drops_points_past_the_checkpoint_and_keeps_those_up_to_it(tmp_path, monkeypatch):
    opened: list[int] = []
    monkeypatch.setattr(
        "openwavlm.training.log.SummaryWriter",
        lambda folder, purge_step: opened.append(purge_step) or SimpleNamespace(close=lambda: None),
    )
    Clocked(tmp_path, last_step=5).log.close()
    assert opened == [6]


# --- the step boundary --------------------------------------------------------------------------------------------------


class Boundary:
    """A step boundary between stand-ins; `done` is what it did at each update."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, *, updates: int = 12, stop_after: int | None = None, **schedules: int
    ) -> None:
        self.done: list[tuple[int, str]] = []
        self.pruned: list[tuple[str, int, dict[str, int]]] = []
        self.step = 0
        self.module: Any = object.__new__(TrainingModule)
        torch.nn.Module.__init__(self.module)
        for name, value in {
            "_device": torch.device("cpu"),
            "model": None,
            "flush": lambda: self.note("flush"),
            "control": SimpleNamespace(note=lambda text: None),
            "pace": SimpleNamespace(go=lambda: None),
        }.items():
            object.__setattr__(self.module, name, value)
        self.trainer: Any = SimpleNamespace(
            should_stop=False,
            is_global_zero=True,
            precision_plugin=SimpleNamespace(forward_context=lambda: self.paused("autocast")),
            save_checkpoint=lambda path, weights_only: self.note(f"save {path.name}"),
        )
        evaluation: Any = SimpleNamespace(
            run=lambda model, device: self.note("validate") or {"cross_entropy": 10.0 + self.step}, compared_by="cross_entropy"
        )
        log: Any = SimpleNamespace(
            paces=lambda own_us: None, validation=lambda step, figures: self.note("log"), sync=lambda: self.note("sync")
        )
        monkeypatch.setattr(
            "openwavlm.training.callbacks.prune", lambda path, last, **kept: self.pruned.append((path.name, last, kept))
        )
        self.boundary = StepBoundary(
            Schedules(**schedules),
            Path("run"),
            updates=updates,
            stop_after=stop_after,
            evaluation=evaluation,
            log=log,
            on_start=lambda: None,
            probe=lambda module, step: self.note("probe"),
            probe_every=6,
        )

    @contextlib.contextmanager
    def paused(self, what: str) -> Iterator[None]:
        yield

    def note(self, what: str) -> None:
        self.done.append((self.step, what))

    def run(self, first: int, last: int, *, stop: bool = False, save: bool = False, requeue: bool = False) -> None:
        for self.step in range(first, last + 1):
            self.trainer.global_step = self.step
            self.module.totals = StepTotals(1, stop, save, requeue, (1,))
            self.boundary.on_train_batch_end(self.trainer, self.module, None, None, 0)

    def steps(self, what: str) -> list[int]:
        return [step for step, done in self.done if done.startswith(what)]


def test_each_thing_is_done_at_its_multiples_and_at_the_end(monkeypatch):
    run = Boundary(monkeypatch, updates=14, checkpoint_every=4, validate_every=5, keep_last=2, keep_every=8, keep_best=1)
    run.run(1, 14)
    assert run.steps("validate") == [5, 10, 14] and run.steps("probe") == [6, 12, 14] and run.steps("save") == [4, 8, 12, 14]
    assert [done for step, done in run.done if step == 14] == [
        "validate",
        "log",
        "probe",
        "flush",
        "sync",
        "save step-00000014.ckpt",
    ]
    assert run.pruned[-1] == ("step-00000014.ckpt", 2, {"keep_every": 8, "keep_best": 1}) and len(run.pruned) == 4
    assert not run.trainer.should_stop


def test_a_figure_on_held_out_speakers_belongs_to_its_own_update_alone(monkeypatch):
    run = Boundary(monkeypatch, checkpoint_every=100, validate_every=5)
    run.run(1, 5)
    assert run.module.validation == 15.0
    run.run(6, 6)
    assert run.module.validation is None


def test_a_stop_saves_and_ends_the_launch_and_is_queued_again_only_where_that_was_asked(monkeypatch):
    run = Boundary(monkeypatch, checkpoint_every=100, validate_every=0, stop_after=3)
    run.run(1, 3)
    assert run.steps("save") == [3] and run.trainer.should_stop and not run.boundary.requeue and run.steps("validate") == []
    for requeue in (False, True):
        asked = Boundary(monkeypatch, checkpoint_every=100, validate_every=0)
        asked.run(1, 2)
        asked.run(3, 3, stop=True, requeue=requeue)
        assert asked.steps("save") == [3] and asked.trainer.should_stop and asked.boundary.requeue is requeue
    ended = Boundary(monkeypatch, updates=3, checkpoint_every=100)
    ended.run(3, 3, stop=True, requeue=True)
    assert not ended.boundary.requeue and not ended.trainer.should_stop, "the run is over"


def test_a_save_that_was_asked_for_is_made_and_training_goes_on(monkeypatch):
    run = Boundary(monkeypatch, checkpoint_every=100, validate_every=0)
    run.run(2, 2, save=True)
    assert run.steps("save") == [2] and not run.trainer.should_stop


@pytest.mark.parametrize(
    ("updates", "kept", "most"),
    [
        (100, {"checkpoint_every": 10, "keep_last": 3}, 4),
        (100, {"checkpoint_every": 10, "keep_last": 3, "keep_every": 30}, 3 + 3 + 1),
        (100, {"checkpoint_every": 10, "keep_last": 3, "keep_best": 2}, 3 + 2 + 1),
        (25, {"checkpoint_every": 10, "keep_last": 9}, 3 + 1),
    ],
)
def test_the_most_checkpoints_of_a_run_are_those_of_all_rules_and_one_being_written(updates, kept, most):
    assert Schedules(**kept).kept_of(updates) == most
