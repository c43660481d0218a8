"""A process that hangs says where and ends with its own status; one that moves is left alone."""

import subprocess
import sys
import time

from openwavlm.training.pace import Pace
from openwavlm.training.watchdog import EXIT_CODE, Watchdog

_HANGS = """
import sys, threading, time
from pathlib import Path
from openwavlm.training.watchdog import Watchdog
dog = Watchdog(0.5, 3, Path(sys.argv[1]))
dog.note("update 7: waiting for the other ranks")
def stuck_in_a_collective():
    time.sleep(60)
stuck_in_a_collective()
"""


def test_a_hanging_process_names_its_rank_its_work_and_its_stack(tmp_path):
    report = tmp_path / "logs" / "rank-0003.log"
    ended = subprocess.run([sys.executable, "-c", _HANGS, str(report)], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == EXIT_CODE
    for text in (ended.stderr, report.read_text()):
        assert "watchdog: rank 3 on " in text and "has made no progress for" in text
        assert "it is at: update 7: waiting for the other ranks" in text
        assert "in stuck_in_a_collective" in text


def test_notes_keep_it_quiet(tmp_path):
    dog = Watchdog(0.4, 0, tmp_path / "log")
    for number in range(12):
        time.sleep(0.1)
        dog.note(f"update {number}")
    dog.close()
    assert not (tmp_path / "log").exists()


def test_waiting_for_others_is_not_a_ranks_own_time():
    pace = Pace(on_gpu=False)
    time.sleep(0.02)  # for the loader
    pace.begin()
    time.sleep(0.03)
    pace.hold()
    time.sleep(0.2)  # for the others
    pace.go()
    time.sleep(0.03)
    pace.hold()
    time.sleep(0.2)
    pace.end()
    assert 80 <= pace.own_ms < 180
