"""The exchange between ranks once a step: what is summed, who asks for what, and when a request is forgotten."""

import os
import signal
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from openwavlm.training import control as module
from openwavlm.training.control import Control, forget_requests, keep_early_signals


class Exchange:
    """Stands in gloo's place: adds what the other ranks would send, once `wait` is called."""

    def __init__(self, *others: list[int]) -> None:
        self.others, self.waited = others, False

    def all_reduce(self, vector: torch.Tensor, group: object, *, async_op: bool = False) -> "Exchange | None":
        """Begins the sum, or makes it at once."""
        self.vector = vector
        if async_op:
            return self
        self.wait()
        return None

    def wait(self) -> None:
        """Ends it."""
        self.waited = True
        for other in self.others:
            self.vector += torch.tensor(other, dtype=self.vector.dtype)


def first_of(monkeypatch: pytest.MonkeyPatch, exchange: Exchange, *, rank: int = 0) -> Control:
    """One rank of as many as `exchange` stands for."""
    control = Control()
    control.rank, control.world_size, control._group = rank, 1 + len(exchange.others), object()
    monkeypatch.setattr(dist, "all_reduce", exchange.all_reduce)
    return control


def test_alone_a_rank_has_its_own_figures():
    control = Control()
    control.begin(37, 12345, own_ms=2.5)
    totals = control.finish()
    assert (totals.units, totals.stop, totals.save, totals.requeue, totals.own_us) == (37, False, False, False, (2500,))
    assert torch.equal(control.sum(torch.tensor([1.0, 2.0])), torch.tensor([1.0, 2.0]))


@pytest.mark.parametrize(
    ("flags", "stop", "save", "requeue"), [((0, 0, 0), False, False, False), ((1, 0, 0), True, False, False)]
)
def test_masked_frames_are_summed_and_times_stay_apart(monkeypatch, flags, stop, save, requeue):
    exchange = Exchange([100, *flags, 7, 11, 0, 0], [1000, 0, 0, 0, 7, 0, 0, 13])
    control = first_of(monkeypatch, exchange, rank=1)
    control.begin(10, 7, own_ms=0.012)
    assert not exchange.waited, "the sum is waited for at the end"
    totals = control.finish()
    assert totals.units == 1110 and totals.own_us == (11, 12, 13)
    assert (totals.stop, totals.save, totals.requeue) == (stop, save, requeue)


@pytest.mark.parametrize("flag", range(3))
def test_a_request_of_any_rank_is_everybodys(monkeypatch, flag):
    flags = [int(place == flag) for place in range(3)]
    control = first_of(monkeypatch, Exchange([0, *flags, 7, 0, 0]))
    control.begin(0, 7)
    totals = control.finish()
    assert [totals.stop, totals.save, totals.requeue] == [bool(value) for value in flags]


@pytest.mark.parametrize(("digest", "fits"), [(7, True), (8, False), (0, False)])
def test_ranks_that_follow_other_plans_are_an_error(monkeypatch, digest, fits):
    control = first_of(monkeypatch, Exchange([5, 0, 0, 0, digest, 0, 0]))
    control.begin(5, 7)
    if fits:
        assert control.finish().units == 10
    else:
        with pytest.raises(RuntimeError, match="the ranks planned different data"):
            control.finish()


def test_figures_are_summed_over_ranks(monkeypatch):
    control = first_of(monkeypatch, Exchange([10, 20], [100, 200]))
    assert control.sum(torch.tensor([1.0, 2.0], dtype=torch.float64)).tolist() == [111.0, 222.0]


def test_touched_files_ask_once_and_only_the_first_rank_looks(tmp_path):
    for name in ("stop", "save_now"):
        (tmp_path / name).touch()
    other = Control(tmp_path)
    other.rank, other.world_size = 1, 2
    other.begin(0, 0)
    assert not other.finish().stop and (tmp_path / "stop").exists() and (tmp_path / "save_now").exists()
    control = Control(tmp_path)
    control.begin(0, 0)
    totals = control.finish()
    assert totals.stop and totals.save and not totals.requeue and control.why == "the file stop"
    assert not list(tmp_path.iterdir())
    control.begin(0, 0)
    totals = control.finish()
    assert totals.stop and not totals.save, "a save is asked for once; a stop stays"


def test_the_first_reason_for_a_stop_is_kept():
    control = Control()
    assert not control.why
    control.ask_stop("a health rule")
    control.ask_stop("something else")
    control.begin(0, 0)
    totals = control.finish()
    assert control.why == "a health rule" and totals.stop and not totals.save and not totals.requeue


def test_requests_from_before_a_launch_are_removed(tmp_path):
    for name in ("stop", "save_now", "config.yaml"):
        (tmp_path / name).touch()
    forget_requests(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.fixture
def handlers(monkeypatch):
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    monkeypatch.setattr(module, "_signals", [])
    monkeypatch.setattr(module, "_early", [])
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("number", "name", "requeue"),
    [(signal.SIGTERM, "SIGTERM", False), (signal.SIGINT, "SIGINT", False), (signal.SIGUSR1, "SIGUSR1", True)],
)
def test_a_signal_stops_at_the_next_step_and_only_slurms_warning_queues_again(handlers, number, name, requeue):
    control = Control()
    control.listen()
    assert not module.signalled()
    try:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)  # a scheduler sends more than one, and none of them ends the process
    except KeyboardInterrupt:
        pytest.fail("the first signal asks for a checkpoint and a stop, and so does a second SIGTERM")
    control.begin(0, 0)
    totals = control.finish()
    assert (totals.stop, totals.save, totals.requeue, control.why) == (True, False, requeue, name) and module.signalled()


def test_a_second_interrupt_ends_at_once(handlers):
    control = Control()
    control.listen()
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        pytest.fail("the first one asks for a checkpoint and a stop")
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_warning_of_slurm_before_training_counts_and_one_of_an_earlier_launch_does_not(handlers):
    keep_early_signals()
    os.kill(os.getpid(), signal.SIGUSR1)
    control = Control()
    control.listen()
    control.begin(0, 0)
    assert control.finish().requeue
    keep_early_signals()
    later = Control()
    later.listen()
    later.begin(0, 0)
    assert not later.finish().stop


def test_every_wait_is_noted_for_the_watchdog(monkeypatch, handlers):
    notes: list[str] = []

    class Notes:
        def note(self, doing: str) -> None:
            notes.append(doing)

        def close(self) -> None:
            notes.append("closed")

    control = first_of(monkeypatch, Exchange([1]))
    control.note("not yet watched")
    control.listen(Notes())
    control.sum(torch.zeros(1))
    control.close()
    control.close()
    control.note("no longer watched")
    assert notes == ["adding up figures over all ranks", "closed"]


def test_the_folder_may_have_gone_without_harm(tmp_path: Path):
    control = Control(tmp_path / "gone")
    control.begin(3, 1)
    assert control.finish().units == 3
