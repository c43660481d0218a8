"""The run directory: one writer, the rules of a second launch, records and checkpoints that survive a kill."""

import errno
import fcntl
import hashlib
import inspect
import json
import multiprocessing
import os
import re
import signal
import socket
import time
import typing
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from openwavlm.runs import lock as run_lock
from openwavlm.runs.lock import TAKEN_OVER, RunLock
from openwavlm.runs.run_directory import RunRecord, accept_config, changed_keys, trajectory
from openwavlm.runs.segments import kept_share, newest_share
from openwavlm.runtime.atomic import write_atomically
from openwavlm.runtime.sealed import checksum_of, sealed
from openwavlm.training.checkpoint import AtomicCheckpointIO, checkpoint_path, named_checkpoint, newest_checkpoint, prune
from openwavlm.training.config import RunConfig
from openwavlm.training.records import CsvRecord
from patience import HANG_S, wait_until

FORK = multiprocessing.get_context("fork")


# --- the lock -----------------------------------------------------------------------------------------------------------


def _hold(directory: Path, held: "multiprocessing.synchronize.Event", *, with_child: bool) -> None:
    RunLock(directory)
    if with_child and os.fork() == 0:  # as a loader worker: it outlives its parent for a while
        time.sleep(3)
        os._exit(0)
    held.set()
    time.sleep(2 * HANG_S)


@pytest.fixture
def holder(tmp_path):
    """Starts processes that hold the run of `tmp_path`; none outlives the test."""
    started = []

    def start(*, with_child: bool = False) -> multiprocessing.Process:
        held = FORK.Event()
        process = FORK.Process(target=_hold, args=(tmp_path, held), kwargs={"with_child": with_child})
        process.start()
        started.append(process)
        assert held.wait(HANG_S)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_a_second_launch_is_refused_with_pid_and_host(tmp_path, holder):
    process = holder()
    with pytest.raises(ValueError, match="is being written by process") as refusal:
        RunLock(tmp_path)
    assert f"process {process.pid} on {socket.gethostname()}: wait for it, stop it, or choose another name" in str(refusal.value)
    assert process.is_alive()


@pytest.mark.parametrize("with_child", [False, True])
def test_a_dead_launch_on_this_host_is_taken_over_at_once(tmp_path, holder, monkeypatch, with_child):
    monkeypatch.setattr(RunLock, "_lives", lambda lock, seen: pytest.fail("a dead process is waited for"))
    process = holder(with_child=with_child)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    lock = RunLock(tmp_path)
    assert json.loads((tmp_path / "lock").read_bytes())["pid"] == os.getpid()
    lock.release()


def _lock_alone(directory: Path, held: "multiprocessing.synchronize.Event") -> None:
    file = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.lockf(file, fcntl.LOCK_EX)
    held.set()
    time.sleep(2 * HANG_S)


def test_a_launch_that_has_not_written_its_name_yet_is_refused_too(tmp_path):
    held = FORK.Event()
    process = FORK.Process(target=_lock_alone, args=(tmp_path, held))
    process.start()
    try:
        assert held.wait(HANG_S)
        with pytest.raises(ValueError, match="is being written by another process: wait for it"):
            RunLock(tmp_path)
    finally:
        process.kill()
        process.join()


def test_a_released_run_is_free(tmp_path):
    for _ in range(2):
        RunLock(tmp_path).release()
    assert (tmp_path / "lock").read_bytes() == b""


NOW_S = 1_000_000.0


def _write_lock(directory: Path, *, age_s: float) -> None:
    record = {"host": "elsewhere", "pid": 17, "job": "4711", "heartbeat": NOW_S - age_s}
    (directory / "lock").write_text(json.dumps(record))


class Clock:
    """Time that passes only while the lock waits.

    Attributes:
        now_s: Seconds.
        each_second: What happens as they pass.
    """

    def __init__(self) -> None:
        self.now_s = NOW_S
        self.each_second: Callable[[], None] = lambda: None

    def time(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return self.now_s - NOW_S + 17

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.each_second()


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(run_lock, "time", made)
    return made


def test_a_launch_on_another_host_is_refused_as_soon_as_its_heart_beats(tmp_path, caplog, clock):
    _write_lock(tmp_path, age_s=100)

    def beat_after_seven_seconds() -> None:
        if clock.now_s >= NOW_S + 7:
            _write_lock(tmp_path, age_s=-7)

    clock.each_second = beat_after_seven_seconds
    with pytest.raises(ValueError, match=r"process 17 on elsewhere: wait for it.*has seen no heartbeat of it for 120 s"):
        RunLock(tmp_path)
    assert clock.now_s == NOW_S + 7
    assert json.loads((tmp_path / "lock").read_text())["host"] == "elsewhere"
    assert "held by process 17 on elsewhere: waiting 120 s for its next heartbeat" in caplog.text


DAY_S = 86_400


@pytest.mark.parametrize("age_s", [0, 100, 5000, -1, -DAY_S, 40 * DAY_S, -10_000 * DAY_S])
def test_a_launch_on_another_host_whose_heart_stands_still_for_120_s_is_taken_over_whatever_its_clock_says(
    tmp_path, clock, caplog, age_s
):
    _write_lock(tmp_path, age_s=age_s)
    lock = RunLock(tmp_path)
    assert clock.now_s == NOW_S + 120
    assert json.loads((tmp_path / "lock").read_bytes())["host"] == socket.gethostname()
    lock.release()
    left = [int(seconds) for seconds in re.findall(r"no heartbeat of process 17 on elsewhere so far, (\d+) s left", caplog.text)]
    assert left == [90, 60, 30] and "it is dead, and the run is taken over" in caplog.text


def test_a_wall_clock_that_jumps_while_a_launch_waits_decides_nothing(tmp_path, clock, monkeypatch):
    _write_lock(tmp_path, age_s=0)
    monkeypatch.setattr(clock, "time", lambda: NOW_S + 30 * DAY_S * (clock.now_s - NOW_S))
    RunLock(tmp_path).release()
    assert clock.now_s == NOW_S + 120


@pytest.mark.parametrize("age_s", [-DAY_S, DAY_S])
def test_a_heart_that_beats_on_a_host_with_another_date_is_seen(tmp_path, clock, age_s):
    _write_lock(tmp_path, age_s=age_s)

    def beat_after_119_seconds() -> None:
        if clock.now_s == NOW_S + 119:
            _write_lock(tmp_path, age_s=age_s - 15)

    clock.each_second = beat_after_119_seconds
    with pytest.raises(ValueError, match="process 17 on elsewhere: wait for it"):
        RunLock(tmp_path)
    assert clock.now_s == NOW_S + 119


def test_a_launch_on_another_host_that_ends_while_it_is_waited_for_leaves_the_run_free(tmp_path, clock):
    _write_lock(tmp_path, age_s=0)
    clock.each_second = lambda: (tmp_path / "lock").write_text("")
    RunLock(tmp_path).release()
    assert clock.now_s == NOW_S + 1


@pytest.fixture
def without_locks(monkeypatch):
    """A file system that has no locks, as Lustre without `flock`."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "lockf", refuse)


@pytest.mark.usefixtures("without_locks")
def test_without_file_locks_a_live_process_of_this_host_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("openwavlm.runs.lock.HEARTBEAT_S", 0.05)
    first = RunLock(tmp_path)
    with pytest.raises(ValueError, match=f"process {os.getpid()} on {socket.gethostname()}: wait for it"):
        RunLock(tmp_path)
    first.release()
    RunLock(tmp_path).release()


@pytest.mark.usefixtures("without_locks")
def test_without_file_locks_a_dead_process_of_this_host_is_taken_over_at_once(tmp_path, clock):
    process = FORK.Process(target=os.getpid)
    process.start()
    process.join()
    record = {"host": socket.gethostname(), "pid": process.pid, "heartbeat": NOW_S}
    (tmp_path / "lock").write_text(json.dumps(record))
    RunLock(tmp_path).release()
    assert clock.now_s == NOW_S


def _stand_still(directory: Path, held: "multiprocessing.synchronize.Event") -> None:
    run_lock.HEARTBEAT_S = 0.2
    RunLock(directory)
    held.set()
    time.sleep(2 * HANG_S)


def test_a_writer_that_was_taken_over_while_it_stood_still_ends(tmp_path):
    held = FORK.Event()
    process = FORK.Process(target=_stand_still, args=(tmp_path, held))
    process.start()
    assert held.wait(HANG_S)
    _write_lock(tmp_path, age_s=0)
    process.join(HANG_S)
    assert process.exitcode == TAKEN_OVER
    assert json.loads((tmp_path / "lock").read_text())["host"] == "elsewhere"


@pytest.mark.parametrize("other", [{"host": "elsewhere"}, {"pid": 1}, {"began": 0.5}])
def test_a_record_of_another_launch_ends_the_writer_whatever_sets_it_apart(tmp_path, monkeypatch, other):
    """A later launch may have the same host and, in another container, the same process id."""
    statuses: list[int] = []
    monkeypatch.setattr(run_lock.os, "_exit", statuses.append)
    lock = RunLock(tmp_path)
    lock._stop.set()
    lock._thread.join()

    def beat() -> list[int]:
        rounds = iter([False, True])
        lock._stop = SimpleNamespace(wait=lambda seconds: next(rounds), set=lambda: None)
        lock._beats()
        return statuses

    assert beat() == []
    lock._ours = {**lock._ours, **other}  # as if the record in the file were another launch's
    assert beat() == [TAKEN_OVER]
    lock.release()


def _lock_of_another(directory: Path, **changes: object) -> None:
    """Deletes the lock and puts that of another host in its place, as a file of its own."""
    (directory / "lock").unlink()
    (directory / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 18, "job": None, "heartbeat": NOW_S} | changes))


def test_a_lock_that_was_replaced_while_it_was_waited_for_is_waited_for_anew(tmp_path, clock):
    _write_lock(tmp_path, age_s=0)

    def replace_and_beat() -> None:
        if clock.now_s == NOW_S + 10:
            _lock_of_another(tmp_path)
        if clock.now_s == NOW_S + 130:
            (tmp_path / "lock").write_text(json.dumps({"host": "elsewhere", "pid": 18, "heartbeat": 0}))

    clock.each_second = replace_and_beat
    with pytest.raises(ValueError, match="is being written by process 18 on elsewhere"):
        RunLock(tmp_path)
    assert clock.now_s == NOW_S + 130


def beaten(lock: RunLock, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One heartbeat of a lock; the statuses with which it would have ended the process."""
    statuses: list[int] = []
    lock._stop.set()
    lock._thread.join()
    rounds = iter([False, True])
    lock._stop = SimpleNamespace(wait=lambda seconds: next(rounds), set=lambda: None)
    with monkeypatch.context() as patch:  # a forked process needs it again
        patch.setattr(run_lock.os, "_exit", statuses.append)
        lock._beats()
    return statuses


def test_a_lock_that_was_deleted_under_its_writer_keeps_others_away_after_the_next_heartbeat(tmp_path, monkeypatch, caplog):
    lock = RunLock(tmp_path)
    (tmp_path / "lock").unlink()
    assert beaten(lock, monkeypatch) == []
    assert json.loads((tmp_path / "lock").read_bytes())["pid"] == os.getpid()
    assert "lock was deleted while this run trains" in caplog.text
    held = FORK.Event()
    process = FORK.Process(target=_hold, args=(tmp_path, held))
    process.start()
    process.join(HANG_S)
    assert process.exitcode != 0 and not held.is_set(), "another process cannot take it"
    lock.release()


def test_a_writer_whose_lock_was_deleted_ends_when_another_launch_has_made_one(tmp_path, monkeypatch):
    lock = RunLock(tmp_path)
    _lock_of_another(tmp_path)
    assert beaten(lock, monkeypatch)[:1] == [TAKEN_OVER]
    lock.release()


@pytest.mark.parametrize("call", ["pread", "pwrite"])
def test_a_lock_that_the_machine_refuses_is_named(tmp_path, monkeypatch, call):
    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(run_lock.os, call, refuse)
    with pytest.raises(OSError, match=re.escape(f"Input/output error: '{tmp_path / 'lock'}'")):
        RunLock(tmp_path)


def test_an_unreadable_lock_is_taken_over(tmp_path):
    for content in (b"", b"{", b"\x00" * 100, b"17"):
        (tmp_path / "lock").write_bytes(content)
        RunLock(tmp_path).release()


def test_the_heart_beats_and_a_reader_never_meets_half_a_record(tmp_path, monkeypatch):
    monkeypatch.setattr("openwavlm.runs.lock.HEARTBEAT_S", 0.001)
    (tmp_path / "lock").touch()
    reader = os.open(tmp_path / "lock", os.O_RDONLY)  # closing it here would drop the lock, which belongs to the process
    lock = RunLock(tmp_path)
    try:
        beats: set[float] = set()

        def seen() -> bool:
            beats.update(json.loads(os.pread(reader, 512, 0))["heartbeat"] for _ in range(1000))
            return len(beats) > 5

        wait_until(seen, poll_s=0)
    finally:
        lock.release()
        os.close(reader)


# --- the second launch --------------------------------------------------------------------------------------------------

CONFIG = {
    "name": "test",
    "seed": 1,
    "optim": {"updates": 100, "lr": 5e-5, "betas": [0.9, 0.98]},
    "data": {"sources": {"speech": {"shards": "a", "share": None}}, "noise": None},
    "trainer": {"devices": 1},
    "callbacks": {"checkpoint_every": 10},
    "logger": {"every_s": 1.0},
    "loader": {"workers": 2},
    "stop_after": None,
    "allow_change": [],
    "debug": False,
}


def with_changes(**changes: object) -> dict:
    """The config with dotted keys (`__` for the dot) set."""
    config = json.loads(json.dumps(CONFIG))
    for key, value in changes.items():
        *path, last = key.split("__")
        node = config
        for name in path:
            node = node[name]
        node[last] = value
    return config


@pytest.fixture
def begun(tmp_path) -> Path:
    """A run that has begun with `CONFIG`."""
    assert accept_config(tmp_path, CONFIG, []) == {}
    RunRecord(tmp_path).begin_segment({"from_step": 0})
    return tmp_path


def test_the_same_config_goes_on(begun):
    assert accept_config(begun, with_changes(), []) == {}
    assert yaml.safe_load((begun / "config.yaml").read_text()) == CONFIG


@pytest.mark.parametrize(
    "key", ["trainer__devices", "callbacks__checkpoint_every", "logger__every_s", "loader__workers", "stop_after"]
)
def test_what_does_not_change_the_trajectory_may_change(begun, key):
    assert accept_config(begun, with_changes(**{key: 7}), []) == {}
    RunRecord(begun).begin_segment({"from_step": 3})
    assert accept_config(begun, CONFIG, []) == {}


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("seed", 2, "  seed: 1 -> 2"),
        ("optim__updates", 200, "  optim.updates: 100 -> 200"),
        ("optim__betas", [0.9, 0.99], "  optim.betas: [0.9, 0.98] -> [0.9, 0.99]"),
        ("data__sources__speech__shards", "b", "  data.sources.speech.shards: 'a' -> 'b'"),
        ("optim__new", 1, "  optim.new: None -> 1"),
        ("trainer_like", 1, "  trainer_like: None -> 1"),
    ],
)
def test_what_changes_the_trajectory_is_refused_with_both_values(begun, key, value, line):
    config = with_changes(**{key: value})
    dotted = key.replace("__", ".")
    with pytest.raises(ValueError, match="this launch differs from the run in") as refusal:
        accept_config(begun, config, ["data.noise"])
    assert str(refusal.value).splitlines()[1] == line and f"allow_change=[{dotted}]" in str(refusal.value)
    assert yaml.safe_load((begun / "config.yaml").read_text()) == CONFIG
    old, new = accept_config(begun, config, [dotted.split(".")[0]])[dotted]
    assert f"{old!r} -> {new!r}" in line
    RunRecord(begun).begin_segment({"from_step": 3, "changes": [dotted]})
    assert yaml.safe_load((begun / "config.yaml").read_text()) == config
    assert json.loads((begun / "run.json").read_text())["segments"][-1]["changes"] == [dotted]


def test_only_what_allow_change_names_is_allowed(begun):
    config = with_changes(optim__updates=200, optim__lr=1.0, seed=3)
    with pytest.raises(ValueError, match="this launch differs") as refusal:
        accept_config(begun, config, ["optim.updates", "see"])
    assert [line.split(":")[0].strip() for line in str(refusal.value).splitlines()[1:-1]] == ["optim.lr", "seed"]
    assert set(accept_config(begun, config, ["optim", "seed"])) == {"optim.updates", "optim.lr", "seed"}


def test_a_launch_that_was_refused_later_binds_nothing(tmp_path):
    wrong = with_changes(data__sources__speech__shards="a-misspelt-folder")
    accept_config(tmp_path, wrong, [])  # then the folder is not found, and no segment begins
    assert accept_config(tmp_path, CONFIG, []) == {}
    RunRecord(tmp_path).begin_segment({"from_step": 0})
    accept_config(tmp_path, with_changes(optim__updates=200), ["optim.updates"])  # refused later again
    assert accept_config(tmp_path, CONFIG, []) == {}


def test_every_launch_is_a_segment_of_the_record(begun):
    for step in (3, 7):
        RunRecord(begun).begin_segment({"from_step": step})
    assert [segment["from_step"] for segment in RunRecord(begun).content["segments"]] == [0, 3, 7]


def test_a_damaged_config_is_named(begun):
    for content in ("a: [", "", "17"):
        (begun / "config.yaml").write_text(content)
        with pytest.raises(ValueError, match=r"config\.yaml is damaged \(.*\): restore it from a copy, or start a new run"):
            accept_config(begun, CONFIG, [])


def test_a_record_of_a_newer_version_is_refused(begun):
    content = json.loads((begun / "run.json").read_text())
    (begun / "run.json").write_text(json.dumps(sealed(content | {"format_version": 3})))
    with pytest.raises(ValueError, match=r"run\.json has format 3, this version reads up to 2: install a newer openwavlm"):
        RunRecord(begun)


def test_a_damaged_record_is_named(begun):
    for content in ("{", "[]", "{}"):
        (begun / "run.json").write_text(content)
        with pytest.raises(ValueError, match=r"run\.json (is damaged|must hold a JSON object)"):
            RunRecord(begun)


def test_changed_data_is_refused_unless_allowed(begun):
    record = RunRecord(begun)
    record.check_fingerprints({"shards.a": "1", "labels.a": "2"}, [])
    record.save()
    RunRecord(begun).check_fingerprints({"labels.a": "2", "shards.a": "1"}, [])
    for changed, names in (
        ({"shards.a": "1", "labels.a": "3"}, "labels.a"),
        ({"shards.a": "1"}, "labels.a"),
        ({"shards.a": "0", "labels.a": "2", "noise": "4"}, "noise, shards.a"),
    ):
        with pytest.raises(ValueError, match=rf"has changed since it began \({names}\): restore it, .* or allow_change=\[data\]"):
            RunRecord(begun).check_fingerprints(changed, ["optim"])
        RunRecord(begun).check_fingerprints(changed, ["data"])


NEVER_TRAJECTORY = ["trainer.devices", "callbacks.keep_last", "logger.name", "loader.workers", "health.rules", "probes.every"]
NEVER_TRAJECTORY += ["stop_after", "allow_change", "debug", "model.recompute"]
TRAJECTORY = ["seed", "model.layers", "model.recompute_all", "masking.prob", "mixing.prob", "batch.seconds", "optim.lr", "loss.x"]


def test_the_trajectory_is_every_key_that_decides_what_comes_out():
    config: dict[str, Any] = {}
    for key in NEVER_TRAJECTORY + TRAJECTORY:
        group, _, name = key.partition(".")
        config[group] = {**config.get(group, {}), name: 1} if name else 1
    assert trajectory(config) == dict.fromkeys(TRAJECTORY, 1)
    assert trajectory({"optim": {"ema": None, "betas": []}, "data": {}}) == {"optim.betas": [], "data": {}}


def test_of_all_keys_of_a_config_only_those_named_here_are_free():
    free = {"trainer", "callbacks", "logger", "loader", "health", "probes", "stop_after", "allow_change", "debug"}
    kinds = {each.name: typing.get_type_hints(RunConfig)[each.name] for each in fields(RunConfig)}
    keys = [name for name in kinds if name not in RunConfig.INNER]
    assert set(keys) - set(trajectory(dict.fromkeys(keys, 1))) == free
    for node in {name for name, kind in kinds.items() if is_dataclass(kind)} - free:
        names = list(inspect.signature(kinds[node]).parameters)
        fixed = {key.removeprefix(f"{node}.") for key in trajectory({node: dict.fromkeys(names, 1)})}
        assert set(names) - fixed == ({"recompute"} if node == "model" else set()), node


def test_a_key_that_was_added_or_taken_away_is_a_change():
    before, after = {"optim": {"lr": 1.0, "ema": 0.9}}, {"optim": {"lr": 2.0, "eps": 0.1}}
    assert changed_keys(before, after) == {"optim.ema": (0.9, None), "optim.eps": (None, 0.1), "optim.lr": (1.0, 2.0)}
    assert changed_keys(before, before) == {}


def test_an_allowed_key_allows_its_own_branch_and_no_other_word(begun):
    changed = with_changes(optim__lr=1.0, optimal=1)
    with pytest.raises(ValueError, match="this launch differs") as refusal:
        accept_config(begun, changed, ["optim"])
    assert [line.split(":")[0].strip() for line in str(refusal.value).splitlines()[1:-1]] == ["optimal"]


DATA = {"validation_share": 0.1, "split_seed": 3, "validation": {"dev": {}}}


def test_a_run_knows_what_all_its_launches_trained_on(begun):
    record = RunRecord(begun)
    record.add_training_data(
        DATA, {"shards.b": "2", "shards.a": "1", "shards.dev": "9", "labels.a": "7", "codebook": "c"}, {"libri"}
    )
    first = {"validation_share": 0.1, "split_seed": 3, "indexes": ["1", "2"], "validation_indexes": ["9"]}
    assert record.trained_on == [{**first, "sources": ["libri"]}]
    record.add_training_data(DATA, {"shards.a": "1", "shards.b": "2", "shards.dev": "9", "labels.a": "8"}, {"libri"})
    assert record.trained_on == [{**first, "sources": ["libri"]}], "other labels of the same audio are no other data"
    for key, value in (("validation_share", 0.2), ("split_seed", 4)):
        record.add_training_data({**DATA, key: value}, {"shards.a": "1", "shards.b": "2", "shards.dev": "9"}, {"libri", "vox"})
        assert record.trained_on[0] == {**first, "sources": ["libri"]} and record.trained_on[-1][key] == value
    assert len(record.trained_on) == 3 and record.content["sources"] == ["libri", "vox"]
    record.add_training_data(DATA, {"shards.a": "1", "shards.dev": "9"}, {"other"})
    assert [entry["indexes"] for entry in record.trained_on] == [["1", "2"], ["1", "2"], ["1", "2"], ["1"]]
    assert record.content["sources"] == ["libri", "other", "vox"]


def test_a_branch_inherits_what_its_run_trained_on(tmp_path):
    parent, branch = RunRecord(tmp_path / "parent"), RunRecord(tmp_path / "branch")
    parent.add_training_data(DATA, {"shards.a": "1", "shards.dev": "9"}, {"libri"})
    parent.add_training_data({**DATA, "split_seed": 4}, {"shards.a": "1", "shards.dev": "9"}, {"libri"})
    parent.content["init_from"] = {"hash": "h"}
    branch.add_training_data({**DATA, "split_seed": 4}, {"shards.a": "1", "shards.dev": "9"}, {"vox"})
    branch.inherit(parent)
    assert [entry["split_seed"] for entry in branch.trained_on] == [3, 4]
    assert branch.content["sources"] == ["libri", "vox"] and branch.content["init_from"] == {"hash": "h"}


def test_a_launch_keeps_the_share_of_its_run_or_of_the_one_that_it_branches_from_if_it_asks_for_the_same_split(tmp_path):
    def asked(share: float, split_seed: int = 0, branch_from: Path | None = None) -> Any:
        return SimpleNamespace(
            data=SimpleNamespace(validation_share=share, split_seed=split_seed), branch_from=branch_from and str(branch_from)
        )

    def begin(run: Path, *entries: dict[str, float]) -> None:
        run.mkdir()
        (run / "config.yaml").write_text(yaml.safe_dump({"data": {"validation_share": 0.1, "split_seed": 0}}))
        record = RunRecord(run)
        record.content["segments"] = [{"from_step": 0, **entry} for entry in entries]
        record.save()

    new, old, settled = (tmp_path / name for name in ("new", "old", "settled"))
    begin(old, {})
    begin(settled, {"validation_share": 0.3}, {"validation_share": 0.25})
    assert kept_share(asked(0.1), new) is None and newest_share(new) is None
    assert kept_share(asked(0.1), old) == 0.1 and kept_share(asked(0.1), settled) == newest_share(settled) == 0.25
    assert kept_share(asked(0.2), settled) is None and kept_share(asked(0.1, 1), settled) is None
    checkpoint = settled / "checkpoints" / "step-00000003.ckpt"
    assert kept_share(asked(0.1, branch_from=checkpoint), new) is None, "there is no such checkpoint"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    assert kept_share(asked(0.1, branch_from=checkpoint), new) == 0.25
    assert kept_share(asked(0.2, branch_from=checkpoint), new) is None
    assert kept_share(asked(0.1, branch_from=checkpoint), old) == 0.1, "a branch that has begun has a split of its own"


def test_data_that_may_change_must_be_named_as_data(begun):
    record = RunRecord(begun)
    record.check_fingerprints({"shards.a": "1"}, [])
    with pytest.raises(ValueError, match=r"has changed since it began \(shards.a\)"):
        record.check_fingerprints({"shards.a": "2"}, ["optim", "seed"])
    record.check_fingerprints({"shards.a": "2"}, ["data"])
    assert record.content["fingerprints"] == {"shards.a": "2"}


def test_a_run_that_does_not_know_the_names_of_its_shards_is_refused_with_the_line_that_adds_them(begun):
    RunRecord(begun).check_fingerprints({"shards.a": "1", "labels.a": "2"}, [])
    record = RunRecord(begun)
    record.check_fingerprints({"shards.a": "1", "labels.a": "2"}, [])
    record.save()
    now = {"shards.a": "1", "labels.a": "2", "metadata.a": "3"}
    with pytest.raises(
        ValueError,
        match=rf"run\.json lacks the checksums of speakers .* by `openwavlm upgrade {begun}`, and the same command resumes the run",
    ):
        RunRecord(begun).check_fingerprints(now, ["optim"])
    RunRecord(begun).check_fingerprints(now, ["data"])
    record.check_fingerprints(now, ["data"])
    record.save()
    RunRecord(begun).check_fingerprints(now, [])
    with pytest.raises(ValueError, match=r"has changed since it began \(metadata\.a\): .* allow_change=\[data\]"):
        RunRecord(begun).check_fingerprints(now | {"metadata.a": "4"}, [])


# --- records ------------------------------------------------------------------------------------------------------------


def written(path: Path, steps: range) -> Path:
    record = CsvRecord(path, ["step", "loss"], last_step=0)
    for step in steps:
        record.write({"step": step, "loss": step / 10})
    record.close()
    return path


def reopened(path: Path, last_step: int) -> list[str]:
    CsvRecord(path, ["step", "loss"], last_step=last_step).close()
    return path.read_text().splitlines()[1:]


def test_rows_past_the_checkpoint_are_cut(tmp_path):
    path = written(tmp_path / "metrics.csv", range(1, 8))
    assert reopened(path, 5) == ["1,0.1", "2,0.2", "3,0.3", "4,0.4", "5,0.5"]
    record = CsvRecord(path, ["step", "loss"], last_step=5)
    record.write({"step": 6})
    record.close()
    assert path.read_text().splitlines()[-1] == "6,"


@pytest.mark.parametrize("torn", ["6,0.", "6", "", "\0\0\0\n", "\0" * 40, "x,1\n"])
def test_a_torn_end_is_cut(tmp_path, torn):
    path = written(tmp_path / "metrics.csv", range(1, 6))
    with path.open("a") as file:
        file.write(torn)
    assert reopened(path, 9) == ["1,0.1", "2,0.2", "3,0.3", "4,0.4", "5,0.5"]


def test_floats_come_back_as_they_were(tmp_path):
    value = 0.1 + 0.2
    record = CsvRecord(tmp_path / "metrics.csv", ["step", "loss"])
    record.write({"step": 1, "loss": value})
    record.close()
    assert float((tmp_path / "metrics.csv").read_text().splitlines()[1].split(",")[1]) == value


def test_a_table_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "same-length.csv"
    path.write_text("step,lost\n")
    with pytest.raises(ValueError, match=r"same-length\.csv has other columns"):
        CsvRecord(path, ["step", "loss"])
    assert path.read_text() == "step,lost\n"
    path = written(tmp_path / "metrics.csv", range(1, 3))
    with pytest.raises(ValueError, match=r"metrics\.csv has other columns than this version writes: start a new run"):
        CsvRecord(path, ["step", "accuracy"], last_step=1)
    assert len(path.read_text().splitlines()) == 3


# --- checkpoints --------------------------------------------------------------------------------------------------------


def save(folder: Path, step: int) -> Path:
    path = checkpoint_path(folder, step)
    AtomicCheckpointIO().save_checkpoint({"weights": torch.full((50,), float(step)), "openwavlm": {"step": step}}, path)
    return path


def describe(path: Path, **values: object) -> None:
    description = path.with_name(path.name + ".json")
    description.write_text(json.dumps(sealed(json.loads(description.read_text()) | values)))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_newest_checkpoint_is_taken(tmp_path):
    assert newest_checkpoint(tmp_path / "none") is None
    for step in (9, 100_000_000, 10):
        path = save(tmp_path, step)
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 100_000_000)
    assert AtomicCheckpointIO().load_checkpoint(path)["openwavlm"]["step"] == 10


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.with_name(path.name + ".json").unlink(),
        lambda path: path.with_name(path.name + ".json").write_text("{"),
        lambda path: path.with_name(path.name + ".json").write_text("{}"),
        lambda path: path.with_name(path.name + ".json").write_text("17"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path, caplog, damage):
    older, newer = save(tmp_path, 1), save(tmp_path, 2)
    damage(newer)
    assert newest_checkpoint(tmp_path) == older
    assert newer.name in caplog.text and "passed over" in caplog.text


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_again_in_silence(tmp_path):
    for step in (1, 2):
        flip_a_byte(save(tmp_path, step))
    with pytest.raises(ValueError, match=r"none of the 2 checkpoints in .* verifies: restore one of them from a copy, or delete"):
        newest_checkpoint(tmp_path)


def test_a_checkpoint_of_a_newer_version_is_refused(tmp_path):
    save(tmp_path, 1)
    describe(save(tmp_path, 2), format_version=2)
    with pytest.raises(
        ValueError, match=r"step-00000002\.ckpt has checkpoint format 2, this version reads up to 1: install a newer"
    ):
        newest_checkpoint(tmp_path)


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, which must be whole."""
    found = sorted(folder.glob("*.ckpt"))
    assert sorted(folder.iterdir()) == sorted(path for one in found for path in (one, one.with_name(one.name + ".json")))
    return [int(path.stem[5:]) for path in found]


@pytest.mark.parametrize(("keep_last", "expected"), [(1, [12]), (2, [9, 12]), (3, [6, 9, 12]), (9, [3, 6, 9, 12])])
def test_pruning_keeps_the_last_steps_whatever_the_clocks_say(tmp_path, keep_last, expected):
    for step in (3, 6, 9, 12):
        save(tmp_path, step)
    for step in (3, 6):
        os.utime(checkpoint_path(tmp_path, step), (2**31, 2**31))
    (tmp_path / "step-00000015.ckpt.tmp").touch()
    prune(checkpoint_path(tmp_path, 12), keep_last)
    assert steps_in(tmp_path) == expected


@pytest.mark.parametrize(("keep_last", "expected"), [(1, [10]), (2, [9, 10]), (3, [6, 9, 10])])
def test_damaged_later_checkpoints_take_no_place_among_the_last_ones(tmp_path, keep_last, expected):
    for step in (3, 6, 9):
        save(tmp_path, step)
    for step in (12, 15):
        flip_a_byte(save(tmp_path, step))
    good = save(tmp_path, 10)  # the run went on from 9, with another checkpoint_every
    prune(good, keep_last)
    assert steps_in(tmp_path) == expected and newest_checkpoint(tmp_path) == good


def test_multiples_and_the_best_are_kept_in_addition_to_the_last(tmp_path):
    for step in range(2, 22, 2):
        save(tmp_path, step)
    for step, figure in ((4, 0.7), (14, 0.7), (6, 0.9), (20, 0.1), (10, -0.5), (12, float("inf"))):
        describe(checkpoint_path(tmp_path, step), validation=figure)
    assert named_checkpoint(tmp_path, "best") == checkpoint_path(tmp_path, 10)
    prune(checkpoint_path(tmp_path, 20), 2, keep_every=8, keep_best=3)
    assert steps_in(tmp_path) == [4, 8, 10, 16, 18, 20]  # 18 and 20; 8 and 16; 10, 20 and the earlier one of 0.7
    describe(checkpoint_path(tmp_path, 10), validation=None)
    prune(checkpoint_path(tmp_path, 20), 1, keep_best=2)
    assert steps_in(tmp_path) == [4, 20]


def test_a_description_says_what_is_in_the_file(tmp_path):
    path, ours = checkpoint_path(tmp_path, 7), {"step": 7, "fingerprints": {"shards.a": "1"}, "validation": 2.5}
    AtomicCheckpointIO().save_checkpoint({"openwavlm": ours}, path)
    content = path.read_bytes()
    described = json.loads((tmp_path / "step-00000007.ckpt.json").read_text())
    assert described == {
        "format_version": 1,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "records": {},
        "seal": checksum_of(described),
        **ours,
    }
    AtomicCheckpointIO().remove_checkpoint(path)
    assert list(tmp_path.iterdir()) == []


def test_checkpoints_are_kept_by_their_step_and_by_their_figure(tmp_path):
    for step in range(5, 60, 5):
        save(tmp_path, step)
    for step, figure in ((5, 3.0), (10, float("nan")), (15, 1.0), (25, 2.0), (35, 0.5)):
        describe(checkpoint_path(tmp_path, step), validation=figure)
    prune(checkpoint_path(tmp_path, 55), 1, keep_every=20, keep_best=2)
    assert sorted(int(path.stem[5:]) for path in tmp_path.glob("*.ckpt")) == [15, 20, 35, 40, 55]
    assert named_checkpoint(tmp_path, "best") == checkpoint_path(tmp_path, 35)
    assert named_checkpoint(tmp_path, "newest") == checkpoint_path(tmp_path, 55)
    assert named_checkpoint(tmp_path, "20") == checkpoint_path(tmp_path, 20)
    with pytest.raises(ValueError, match="must be newest, best or one of 15, 20, 35, 40, 55, but is 25"):
        named_checkpoint(tmp_path, "25")
    for step, which in ((35, "best"), (20, "20")):
        flip_a_byte(checkpoint_path(tmp_path, step))
        with pytest.raises(ValueError, match=rf"step-000000{step}\.ckpt is damaged"):
            named_checkpoint(tmp_path, which)


def test_without_a_validated_checkpoint_none_is_best(tmp_path):
    save(tmp_path, 5)
    with pytest.raises(ValueError, match="there is no best one: use checkpoint=newest"):
        named_checkpoint(tmp_path, "best")


def _no_space(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _error_of_its_own(*_: object) -> None:
    try:
        _no_space()
    except OSError:
        raise RuntimeError("unexpected pos 3603200 vs 3603152")  # noqa: B904  as torch's writer does


def _no_quota(*_: object) -> None:
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


@pytest.mark.parametrize(
    "fails_at",
    [(torch, "save", _no_space), (torch, "save", _no_quota), (torch, "save", _error_of_its_own), (os, "fsync", _no_space)],
)
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, fails_at):
    save(tmp_path, 1)
    monkeypatch.setattr(*fails_at)
    with pytest.raises(ValueError, match=r"is full, so step-00000002.ckpt was not written; .* free some space"):
        save(tmp_path, 2)
    monkeypatch.undo()
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1)
    assert not list(tmp_path.glob("*.tmp"))
    save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 2)


def test_an_error_that_is_no_full_disk_is_told_as_it_is_and_leaves_nothing(tmp_path, monkeypatch):
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        save(tmp_path, 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EFBIG])
def test_a_checkpoint_that_cannot_be_written_to_its_end_is_named_and_leaves_nothing(tmp_path, monkeypatch, code):
    def hide(content: object, file: Any) -> None:
        try:
            raise OSError(code, os.strerror(code))
        except OSError:
            raise RuntimeError("unexpected pos 110336 vs 110224")  # noqa: B904  as torch's writer does when it closes

    save(tmp_path, 1)
    monkeypatch.setattr(torch, "save", hide)
    with pytest.raises(OSError, match=re.escape(f"[Errno {code}] {os.strerror(code)}: '{checkpoint_path(tmp_path, 2)}'")):
        save(tmp_path, 2)
    assert not list(tmp_path.glob("*.tmp")) and newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 1)


def test_a_small_file_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", _no_space)
    with pytest.raises(OSError, match=rf"No space left on device: '{re.escape(str(tmp_path / 'run.json'))}'"):
        write_atomically(tmp_path / "run.json", b"{}")
    assert not list(tmp_path.iterdir())


def _save_and_die(folder: Path, fsyncs: int, *, at_rename: bool) -> None:
    """Kills the process at the given fsync, or just before the last rename."""
    real, calls = os.fsync, [0]

    def fsync(descriptor: int) -> None:
        calls[0] += 1
        if calls[0] == fsyncs:
            os.kill(os.getpid(), signal.SIGKILL)
        real(descriptor)

    os.fsync = fsync
    if at_rename:
        replace = Path.replace

        def die_or_replace(self: Path, target: Path) -> Path:
            if Path(target).suffix == ".ckpt":
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(self, target)

        Path.replace = die_or_replace
    torch.set_num_threads(1)
    save(folder, 2)


@pytest.mark.parametrize(
    ("fsyncs", "at_rename", "survivor"), [(1, False, 1), (2, False, 1), (3, False, 1), (0, True, 1), (4, False, 2)]
)
def test_a_kill_at_any_point_of_saving_leaves_a_checkpoint_that_works(tmp_path, fsyncs, at_rename, survivor):
    save(tmp_path, 1)
    process = FORK.Process(target=_save_and_die, args=(tmp_path, fsyncs), kwargs={"at_rename": at_rename})
    process.start()
    process.join(HANG_S)
    assert process.exitcode == -signal.SIGKILL
    found = newest_checkpoint(tmp_path)
    assert found == checkpoint_path(tmp_path, survivor)
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(found)["weights"], torch.full((50,), float(survivor)))
    save(tmp_path, 2)
    assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 2)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, ("false",)

    path = checkpoint_path(tmp_path, 1)
    AtomicCheckpointIO().save_checkpoint({"x": Payload()}, path)
    with pytest.raises(
        Exception, match=r"step-00000001\.ckpt must hold tensors and plain values alone \(Weights only load failed"
    ):
        AtomicCheckpointIO().load_checkpoint(path)


def test_a_key_that_came_later_is_no_part_of_a_runs_identity_at_its_default():
    before = {"loss": {"unmasked": 1.0}, "optim": {"ema": None}}
    assert trajectory({**before, "loss": {"unmasked": 1.0, "targets": None}}) == trajectory(before)
    assert changed_keys(before, {**before, "loss": {"unmasked": 1.0, "targets": [2.0, 1.0]}}) == {
        "loss.targets": (None, [2.0, 1.0])
    }
