"""What a step boundary does, in which order, and at which updates: validation, probes, records, checkpoints, the stop."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openwavlm.training.callbacks import StepBoundary
from openwavlm.training.checkpoint import AtomicCheckpointIO
from openwavlm.training.control import StepTotals
from openwavlm.training.module import TrainingModule
from openwavlm.training.settings import Schedules
from steps import Ranks, model, training_module


class Noted(Ranks):
    """An exchange that keeps its notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, doing: str) -> None:
        """Keeps it."""
        self.notes.append(doing)


class Boundary:
    """A step boundary whose surroundings write down what it asks of them, instead of doing it.

    Attributes:
        events: What was asked for at the last update, in order.
        saved: Update → the figure of validation that its checkpoint keeps.
        figures: Cross-entropies of the coming validations.
    """

    def __init__(self, directory: Path, schedules: Schedules, *, first: bool = True, **values: Any) -> None:
        self.directory, self.events, self.paused = directory, [], False
        self.saved: dict[int, float | None] = {}
        self.figures: list[float] = []
        self.control = Noted()
        self.module = training_module(model(), control=self.control)
        self.module.flush = lambda: self.events.append("flush")
        self.module.pace = SimpleNamespace(go=lambda: self.events.append("rest"))
        log = SimpleNamespace(
            paces=lambda own_us: self.events.append(f"paces {own_us}"),
            validation=lambda step, figures: self.events.append(f"log validation {step} {figures['cross_entropy']}"),
            sync=lambda: self.events.append("sync"),
        )
        self.trainer: Any = SimpleNamespace(
            global_step=0,
            should_stop=False,
            is_global_zero=first,
            save_checkpoint=self.save,
            precision_plugin=SimpleNamespace(forward_context=self.autocast),
        )
        self.autocasting = False
        evaluation = SimpleNamespace(run=self.evaluate, compared_by="cross_entropy")
        arguments = {
            "updates": 10,
            "stop_after": None,
            "evaluation": evaluation,
            "probe_every": 0,
        }
        self.started = 0
        self.boundary = StepBoundary(
            schedules,
            directory,
            **(arguments | {"log": log if first else None} | values),
            on_start=self.start,
            paused=self.pause,
        )

    def start(self) -> None:
        """Counts."""
        self.started += 1

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves the wall time out."""
        self.paused = True
        yield
        self.paused = False

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Stands for the precision of training."""
        self.autocasting = True
        yield
        self.autocasting = False

    def evaluate(self, learner: Any, device: Any) -> dict[str, float]:
        """A pass over the held-out set."""
        assert self.paused and self.autocasting and learner is self.module.model and device == self.module.device
        self.events.append("validate")
        return {"cross_entropy": self.figures.pop(0)}

    def probe(self, module: TrainingModule, step: int) -> None:
        """A probe."""
        assert self.paused and module is self.module
        self.events.append(f"probe {step}")

    def save(self, path: Path, *, weights_only: bool) -> None:
        """Writes a checkpoint that has only its description."""
        assert self.paused and not weights_only
        self.events.append(f"save {path.relative_to(self.directory)}")
        self.saved[self.trainer.global_step] = self.module.validation
        content = {"openwavlm": {"step": self.trainer.global_step, "validation": self.module.validation}}
        AtomicCheckpointIO().save_checkpoint(content, path)

    def after(self, step: int, **asked: bool) -> list[str]:
        """What the boundary after an update asked for."""
        self.events.clear()
        self.trainer.global_step = step
        flags = {"stop": False, "save": False, "requeue": False} | asked
        self.module.totals = StepTotals(5, own_us=(1, 2), **flags)
        self.boundary.on_train_batch_end(self.trainer, self.module, None, None, 0)
        return list(self.events)

    @property
    def kept(self) -> list[int]:
        """Updates of the checkpoints in the folder, each with its description."""
        found = sorted(int(path.stem[5:]) for path in (self.directory / "checkpoints").glob("step-*.ckpt"))
        described = [json.loads(path.read_text())["step"] for path in sorted((self.directory / "checkpoints").glob("*.json"))]
        assert found == described
        return found


def test_validation_and_probes_come_before_the_checkpoint_that_keeps_their_figures(tmp_path):
    boundary = Boundary(tmp_path, Schedules(checkpoint_every=6, validate_every=3), probe=lambda *_: None, probe_every=6)
    boundary.boundary._probe = boundary.probe
    boundary.figures = [2.5, 2.25]
    boundary.after(3)
    assert boundary.after(6) == [
        "paces (1, 2)",
        "validate",
        "log validation 6 2.25",
        "probe 6",
        "flush",
        "sync",
        "save checkpoints/step-00000006.ckpt",
        "rest",
    ]
    notes = ["validation after update 3", "validation after update 6", "probes after update 6", "saving after update 6"]
    assert boundary.control.notes == notes and boundary.saved == {6: 2.25} and not boundary.trainer.should_stop


@pytest.mark.parametrize(
    ("schedules", "probe_every", "validated", "probed", "saved"),
    [
        ({"checkpoint_every": 4, "validate_every": 3}, 2, [3, 6, 9, 10], [2, 4, 6, 8, 10], [4, 8, 10]),
        ({"checkpoint_every": 5, "validate_every": 5}, 4, [5, 10], [4, 8, 10], [5, 10]),
        ({"checkpoint_every": 99, "validate_every": 99}, 99, [10], [10], [10]),
        ({"checkpoint_every": 99, "validate_every": 0}, 0, [], [], [10]),
    ],
)
def test_what_is_due_every_so_often_is_due_at_the_last_update_too(tmp_path, schedules, probe_every, validated, probed, saved):
    boundary = Boundary(tmp_path, Schedules(**schedules), probe_every=probe_every)
    boundary.boundary._probe = boundary.probe if probe_every else None
    boundary.figures = [1.0] * 10
    events = {step: boundary.after(step) for step in range(1, 11)}
    assert [step for step, found in events.items() if "validate" in found] == validated
    assert [step for step, found in events.items() if f"probe {step}" in found] == probed
    assert list(boundary.saved) == saved
    assert [step for step, found in events.items() if "flush" in found] == saved
    assert all(found[-1] == "rest" for found in events.values())
    assert not boundary.trainer.should_stop and not boundary.boundary.requeue


def test_a_checkpoint_keeps_the_figure_of_its_own_update_and_of_no_earlier_one(tmp_path):
    boundary = Boundary(tmp_path, Schedules(checkpoint_every=2, validate_every=4))
    boundary.figures = [3.0, 2.0, 1.0]
    for step in range(1, 11):
        boundary.after(step)
    assert boundary.saved == {2: None, 4: 3.0, 6: None, 8: 2.0, 10: 1.0}


def test_the_rules_of_keeping_are_those_of_the_schedules(tmp_path):
    boundary = Boundary(tmp_path, Schedules(checkpoint_every=1, validate_every=1, keep_last=2, keep_every=4, keep_best=1))
    boundary.figures = [9.0, 8.0, 1.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.5, 2.0]
    kept = []
    for step in range(1, 11):
        boundary.after(step)
        kept.append(boundary.kept)
    assert kept[1:4] == [[1, 2], [2, 3], [3, 4]] and kept[6] == [3, 4, 6, 7] and kept[9] == [3, 4, 8, 9, 10]


def test_only_the_first_rank_deletes_checkpoints_and_writes_records(tmp_path):
    boundary = Boundary(tmp_path, Schedules(checkpoint_every=1, validate_every=4, keep_last=1), first=False)
    boundary.figures = [1.0]
    first, *_ = [boundary.after(step) for step in range(1, 4)]
    assert first == ["flush", "save checkpoints/step-00000001.ckpt", "rest"]
    assert boundary.after(4)[0] == "validate", "every rank has its part of the held-out set"
    assert boundary.kept == [1, 2, 3, 4]


@pytest.mark.parametrize("requeue", [False, True])
def test_a_stop_saves_and_ends_and_only_slurms_warning_queues_again(tmp_path, requeue):
    boundary = Boundary(tmp_path, Schedules(checkpoint_every=99, validate_every=0))
    assert boundary.after(2, save=True)[-2] == "save checkpoints/step-00000002.ckpt"
    assert not boundary.trainer.should_stop, "a request to save does not stop"
    assert boundary.after(3) == ["paces (1, 2)", "rest"]
    boundary.after(4, stop=True, requeue=requeue)
    assert boundary.trainer.should_stop and boundary.boundary.requeue is requeue and list(boundary.saved) == [2, 4]


def test_a_run_that_ends_is_not_stopped_and_not_queued_again(tmp_path):
    boundary = Boundary(tmp_path, Schedules(checkpoint_every=99, validate_every=0))
    boundary.after(10, stop=True, requeue=True)
    assert not boundary.trainer.should_stop and not boundary.boundary.requeue and list(boundary.saved) == [10]


def test_a_launch_ends_after_the_update_that_it_was_given(tmp_path):
    boundary = Boundary(tmp_path, Schedules(checkpoint_every=99, validate_every=0), stop_after=4)
    boundary.after(3)
    assert not boundary.trainer.should_stop and not boundary.saved
    boundary.after(4)
    assert boundary.trainer.should_stop and list(boundary.saved) == [4] and not boundary.boundary.requeue


def test_a_launch_binds_its_run_when_training_begins(tmp_path):
    boundary = Boundary(tmp_path, Schedules())
    assert boundary.started == 0
    boundary.boundary.on_train_start(boundary.trainer, boundary.module)
    assert boundary.started == 1


@pytest.mark.parametrize(
    ("values", "updates", "most"),
    [
        ({"checkpoint_every": 1000, "keep_last": 3}, 400_000, 4),
        ({"checkpoint_every": 1000, "keep_last": 3, "keep_every": 100_000, "keep_best": 2}, 400_000, 10),
        ({"checkpoint_every": 1000, "keep_last": 3, "keep_every": 3000}, 10_000, 7),
        ({"checkpoint_every": 1000, "keep_last": 3, "keep_best": 5}, 3500, 5),  # 1000, 2000, 3000, 3500 and the unfinished one
        ({"checkpoint_every": 1000, "keep_last": 3}, 999, 2),
    ],
)
def test_the_most_checkpoints_of_a_run_are_those_kept_and_the_one_being_written(values, updates, most):
    assert Schedules(**values).kept_of(updates) == most


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("checkpoint_every", 1),
        ("keep_last", 1),
        ("keep_every", 0),
        ("keep_best", 0),
        ("validate_every", 0),
        ("unmasked_every", 0),
    ],
)
def test_a_schedule_has_least_values(name, least):
    assert getattr(Schedules(**{name: least}), name) == least
    with pytest.raises(ValueError, match=f"callbacks.{name} must be at least {least}, but is {least - 1}: raise it"):
        Schedules(**{name: least - 1})


def test_schedules_have_the_documented_defaults():
    assert Schedules() == Schedules(
        checkpoint_every=1000, keep_last=3, keep_every=0, keep_best=0, validate_every=1000, unmasked_every=50
    )
