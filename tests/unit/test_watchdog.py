"""A process that hangs says where and ends with its own status; one that moves is left alone."""

import pickle
import subprocess
import sys
import threading
from types import SimpleNamespace

import torch

from openwavlm.runtime.watchdog import EXIT_CODE, Watchdog, _pending_collectives
from openwavlm.training.pace import Pace
from patience import HANG_S

_HANGS = """
import sys, threading, time
from pathlib import Path
from openwavlm.runtime.watchdog import Watchdog
dog = Watchdog(0.5, 3, Path(sys.argv[1]))
dog.note("update 7: waiting for the other ranks")
def stuck_in_a_collective():
    time.sleep(60)
stuck_in_a_collective()
"""


def test_a_hanging_process_names_its_rank_its_work_and_its_stack(tmp_path):
    report = tmp_path / "logs" / "rank-0003.log"
    ended = subprocess.run(
        [sys.executable, "-c", _HANGS, str(report)], capture_output=True, text=True, timeout=HANG_S, check=False
    )
    assert ended.returncode == EXIT_CODE
    for text in (ended.stderr, report.read_text()):
        assert "watchdog: rank 3 on " in text and "has made no progress for" in text
        assert "it is at: update 7: waiting for the other ranks" in text
        assert "in stuck_in_a_collective" in text


def test_notes_keep_it_quiet(tmp_path):
    now, looks = [0.0], threading.Semaphore(0)

    def clock() -> float:
        if threading.current_thread().name == "watchdog":
            looks.release()
        return now[0]

    dog = Watchdog(0.4, 0, tmp_path / "log", now=clock)
    for number in range(8):
        now[0] += 0.3
        dog.note(f"update {number}")
        for _ in range(2):  # the first look may have begun before the note
            assert looks.acquire(timeout=HANG_S)
    dog.close()
    assert not (tmp_path / "log").exists()


def test_waiting_for_others_is_not_a_ranks_own_time():
    now = [0.0]
    pace = Pace(on_gpu=False, now=lambda: now[0])
    now[0] = 1.0  # for the loader
    pace.begin()
    now[0] = 3.0
    pace.hold()
    now[0] = 103.0  # for the others
    pace.go()
    now[0] = 107.0
    pace.hold()
    now[0] = 207.0
    pace.end()
    assert pace.own_ms == 1000 * (1 + 2 + 4)
    now[0] = 300.0
    pace.go()
    now[0] = 300.5
    pace.begin()
    pace.hold()
    pace.end()
    assert pace.own_ms == 500, "validation and saving do not count"


class Event:
    """A CUDA event by a clock of the test, in milliseconds."""

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        self.at = -1.0

    def record(self) -> None:
        self.at = Event.now

    def elapsed_time(self, end: "Event") -> float:
        return end.at - self.at


def test_on_a_gpu_the_forward_passes_of_the_step_before_count(monkeypatch):
    monkeypatch.setattr(torch.cuda, "Event", Event)
    pace, own_ms = Pace(on_gpu=True, now=lambda: 0.0), []
    for passes in ([5.0, 7.0], [1.0], []):
        pace.begin()
        for milliseconds in passes:
            with pace.forward():
                Event.now += milliseconds
        pace.hold()
        pace.end()
        own_ms.append(pace.own_ms)
    assert own_ms == [0.0, 12.0, 1.0]


def test_the_collectives_that_are_under_way_are_named(monkeypatch):
    entries = [
        {"profiling_name": "nccl:all_reduce", "input_sizes": [[number]], "state": state}
        for number, state in enumerate(["completed", *["scheduled"] * 6, "started", "completed"])
    ]
    recorder = SimpleNamespace(_dump_nccl_trace=lambda: pickle.dumps({"entries": entries}))
    monkeypatch.setattr(torch._C, "_distributed_c10d", recorder)
    assert _pending_collectives() == [
        *(f"pending: nccl:all_reduce [[{number}]] (scheduled)" for number in (3, 4, 5, 6)),
        "pending: nccl:all_reduce [[7]] (started)",
    ]
