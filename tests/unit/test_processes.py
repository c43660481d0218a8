"""A training ends with the command that started it."""

import os
import signal
import subprocess
import sys
import time

import pytest

from openwavlm.processes import PARENT, answer_parent

# A parent that starts a child as `iterate` starts a training, says its pid, and waits.
_PARENT = """
import os, subprocess, sys, time
child = '''
import signal, sys, time
from openwavlm.processes import answer_parent
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), sys.exit(0)))
answer_parent()
print("ready", flush=True)
time.sleep(60)
'''
subprocess.run([sys.executable, "-c", child], env=os.environ | {"OPENWAVLM_PARENT": str(os.getpid())})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_killed_parent_asks_its_training_to_stop():
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGKILL)
    began = time.monotonic()
    assert parent.stdout.readline() == "asked to stop\n"
    assert time.monotonic() - began < 30
    parent.stdout.close()
    parent.wait()


def test_a_training_whose_parent_has_gone_does_not_begin(monkeypatch):
    monkeypatch.setenv(PARENT, "1" if os.getppid() != 1 else "2")
    monkeypatch.setattr("openwavlm.processes.end_with_parent", lambda number: None)
    with pytest.raises(SystemExit, match="has ended"):
        answer_parent()
    assert PARENT not in os.environ


def test_a_program_started_by_hand_answers_to_nobody(monkeypatch):
    monkeypatch.delenv(PARENT, raising=False)
    monkeypatch.setattr("openwavlm.processes.end_with_parent", lambda number: pytest.fail("nobody's child"))
    answer_parent()
