"""A trial's figures by a clock of the test: an update's part of each micro-batch counts, waiting for data is a share of the whole."""

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from openwavlm.planning import trial

CLOCK = {"now": 0.0}


def step(seconds: float, update: float) -> Any:
    def micro_batch(batch: object, mixing: object) -> None:
        CLOCK["now"] += seconds

    return SimpleNamespace(micro_batch=micro_batch, update=lambda: update, device=torch.device("cpu"))


def batches(wait: float, count: int | None = None) -> Any:
    """Micro-batches of 64,000 samples that take `wait` seconds to arrive; as many as asked for."""
    for _ in itertools.count() if count is None else range(count):
        CLOCK["now"] += wait
        yield SimpleNamespace(valid_samples=64_000)


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    CLOCK["now"] = 100.0
    monkeypatch.setattr(trial, "time", SimpleNamespace(perf_counter=lambda: CLOCK["now"]))


def test_micro_batches_are_timed_for_as_long_as_asked_and_an_update_is_shared_by_its_micro_batches():
    # 0.5 s of waiting and 1.5 s of computing: five micro-batches are the first to fill 9 s; an update of 4 s has eight of them.
    found = trial._timed(step(1.5, 4.0), batches(0.5), None, 9.0, slots=8)
    whole = 5 * 2.0 + 4.0 * 5 / 8
    assert found["audio_seconds_a_second"] == pytest.approx(5 * 4.0 / whole)
    assert found["wait_share"] == pytest.approx(2.5 / whole)
    assert found["seconds_a_micro_batch"] == pytest.approx(whole / 5)
    assert found["peak_memory_bytes"] > 1e6


def test_two_micro_batches_are_timed_at_least_and_no_more_than_there_are():
    slow = trial._timed(step(50.0, 0.0), batches(0.0), None, 1.0, slots=1)
    assert slow["seconds_a_micro_batch"] == 50.0 and slow["audio_seconds_a_second"] == pytest.approx(8.0 / 100)
    seconds = iter([50.0, 10.0, 1.0])
    uneven = step(0.0, 0.0)
    uneven.micro_batch = lambda batch, mixing: CLOCK.update(now=CLOCK["now"] + next(seconds))
    assert trial._timed(uneven, batches(0.0), None, 1.0, slots=1)["seconds_a_micro_batch"] == 30.0
    few = trial._timed(step(1.0, 0.0), batches(0.0, count=3), None, 100.0, slots=1)
    assert few["audio_seconds_a_second"] == pytest.approx(4.0)
