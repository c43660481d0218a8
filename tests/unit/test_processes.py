"""A training ends with the command that started it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from openwavlm.runtime.interrupt import signals_blocked
from openwavlm.runtime.processes import PARENT, answer_parent
from patience import HANG_S

# A parent that starts a child as `iterate` starts a training, says its pid, and waits.
_PARENT = """
import os, subprocess, sys, time
child = '''
import signal, sys, time
from openwavlm.runtime.processes import answer_parent
signal.signal(signal.SIGTERM, lambda *_: (print("asked to stop", flush=True), sys.exit(0)))
answer_parent()
print("ready", flush=True)
time.sleep(600)
print("not asked", flush=True)
'''
subprocess.run([sys.executable, "-c", child], env=os.environ | {"OPENWAVLM_PARENT": str(os.getpid())})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_a_killed_parent_asks_its_training_to_stop():
    parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    parent.send_signal(signal.SIGKILL)
    assert parent.stdout.readline() == "asked to stop\n"
    parent.stdout.close()
    parent.wait()


def test_a_training_whose_parent_has_gone_does_not_begin(monkeypatch):
    monkeypatch.setenv(PARENT, "1" if os.getppid() != 1 else "2")
    monkeypatch.setattr("openwavlm.runtime.processes.end_with_parent", lambda number: None)
    with pytest.raises(SystemExit, match="has ended"):
        answer_parent()
    assert PARENT not in os.environ


def test_a_program_started_by_hand_answers_to_nobody(monkeypatch):
    monkeypatch.delenv(PARENT, raising=False)
    monkeypatch.setattr("openwavlm.runtime.processes.end_with_parent", lambda number: pytest.fail("nobody's child"))
    answer_parent()


# A parent as `iterate` is one, and a training that answers signals as `Control` lets it: a second SIGINT ends it at once.
_ITERATE = """
import os, signal, sys
from openwavlm.runtime.processes import run_until_saved
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
child = '''
import signal, time
asked = []
def on_signal(number, frame):
    if number == signal.SIGINT and asked:
        raise KeyboardInterrupt
    asked.append(number)
signal.signal(signal.SIGINT, on_signal)
signal.signal(signal.SIGTERM, on_signal)
print("ready", flush=True)
while not asked:
    time.sleep(0.01)
print("saving", flush=True)
for _ in range(SAVING):
    time.sleep(0.01)
print("saved", flush=True)
'''
try:
    run_until_saved([sys.executable, "-c", child.replace("SAVING", sys.argv[1])], os.environ)
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


# A command of several processes: a launcher, its children, and what hands signals on to them.
_LAUNCH = """
import sys
from openwavlm.runtime.processes import run_handing_on_signals
worker = '''
import os, signal, sys, time
got = []
def say(line):
    os.write(1, line.encode() + bytes([10]))  # at once, beside the other process
def on_signal(number, frame):
    got.append(number)
    say("process " + sys.argv[1] + " " + signal.Signals(number).name)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, on_signal)
parent = os.getppid()
say("ready")
while len(got) < 3 and os.getppid() == parent:
    time.sleep(0.01)
'''
launcher = '''
import os, signal, subprocess, sys
def on_signal(number, frame):
    os.write(1, b"launcher" * 9 + bytes([10, 10]))
    os._exit(1)  # its processes end too
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, on_signal)
children = [subprocess.Popen([sys.executable, "-c", sys.argv[1], str(rank)]) for rank in range(2)]
sys.exit(5 + sum(child.wait() for child in children))
'''
print("status", run_handing_on_signals([sys.executable, "-c", launcher, worker]), flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the children of a process")
def test_a_launchers_processes_get_each_signal_and_the_launcher_none():
    command = subprocess.Popen([sys.executable, "-c", _LAUNCH], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert command.stdout is not None and [command.stdout.readline() for _ in range(2)] == ["ready\n"] * 2
    try:
        for number, send in ((signal.SIGUSR1, os.kill), (signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill)):
            send(command.pid, number)  # a terminal's Ctrl-C goes to its whole group, of which the launcher is no member
            found = sorted(command.stdout.readline() for _ in range(2))
            assert found == [f"process {rank} {number.name}\n" for rank in range(2)]
        assert command.communicate(timeout=HANG_S)[0] == "status 5\n"
    finally:
        with suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)
        command.communicate()


@contextmanager
def iterating(saving_s: int) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", _ITERATE, str(100 * saving_s)]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    assert parent.stdout is not None and parent.stdout.readline() == "ready\n"
    try:
        yield parent
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.communicate()


@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["the terminal's, to both", "to the command alone"])
def test_an_interrupted_command_waits_until_its_training_has_saved(send):
    with iterating(saving_s=1) as parent:
        send(parent.pid, signal.SIGINT)
        assert parent.communicate(timeout=HANG_S)[0] == "saving\nsaved\ninterrupted\n"


def test_a_second_interruption_ends_the_training_at_once():
    with iterating(saving_s=10 * int(HANG_S)) as parent:
        os.kill(parent.pid, signal.SIGINT)
        assert parent.stdout is not None and parent.stdout.readline() == "saving\n"
        os.kill(parent.pid, signal.SIGINT)
        assert parent.communicate(timeout=HANG_S)[0] == "interrupted\n"


def test_a_signal_that_arrives_while_signals_are_being_blocked_leaves_none_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    set_mask = signal.pthread_sigmask

    def interrupted(how: int, signals: tuple[int, ...]) -> set[int]:
        before = set_mask(how, signals)
        if signal.SIGINT in signals and how == signal.SIG_BLOCK:
            raise KeyboardInterrupt  # as CPython does, after it has blocked
        return before

    monkeypatch.setattr(signal, "pthread_sigmask", interrupted)
    try:
        with pytest.raises(KeyboardInterrupt), signals_blocked(signal.SIGINT, signal.SIGTERM):
            pass
        assert set_mask(signal.SIG_BLOCK, ()) == mask
    finally:
        set_mask(signal.SIG_SETMASK, mask)


def test_signals_are_delayed_to_the_end_of_the_block() -> None:
    seen: list[str] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append("signal"))
    try:
        with signals_blocked(signal.SIGUSR1):
            signal.raise_signal(signal.SIGUSR1)
            seen.append("end of the block")
        assert seen == ["end of the block", "signal"]
    finally:
        signal.signal(signal.SIGUSR1, before)
