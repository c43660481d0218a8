"""One run, one directory, one writer: the lock, the second-launch rules, and `run.json`."""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import yaml

from openwavlm.training.checkpoint import write_atomically

FORMAT_VERSION = 1
HEARTBEAT_S = 15.0
DEAD_AFTER_S = 120.0
_FREE_GROUPS = ("trainer", "callbacks", "logger", "loader")  # may differ between launches: they do not change the trajectory
_FREE_KEYS = ("stop_after", "allow_change", "debug")


class RunLock:
    """Only one launch writes to a run: an advisory file lock on this host, a heartbeat for the others.

    Args:
        directory: The run directory.

    Raises:
        ValueError: If a live launch holds the run.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "lock"
        self._file = self.path.open("a+")
        holder = self._holder()
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ValueError(self._refusal(holder)) from None
        fresh = time.time() - holder.get("heartbeat", 0) < DEAD_AFTER_S
        if holder and holder.get("host") != socket.gethostname() and fresh:
            raise ValueError(self._refusal(holder))
        self._stop = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._beats, daemon=True)
        self._thread.start()

    def _holder(self) -> dict[str, Any]:
        self._file.seek(0)
        try:
            return json.loads(self._file.read() or "{}")
        except ValueError:
            return {}

    def _refusal(self, holder: dict[str, Any]) -> str:
        who = f"process {holder.get('pid')} on {holder.get('host')}" if holder else "another process"
        return (
            f"the run {self.path.parent} is being written by {who}: wait for it, stop it, or choose another name "
            f"(a dead writer on another host is taken over {DEAD_AFTER_S:.0f} s after its last heartbeat)"
        )

    def _beat(self) -> None:
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "job": os.environ.get("SLURM_JOB_ID"),
            "heartbeat": time.time(),
        }
        self._file.seek(0)
        self._file.truncate()
        self._file.write(json.dumps(record))
        self._file.flush()

    def _beats(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                self._beat()

    def release(self) -> None:
        """Gives the run free."""
        self._stop.set()
        self._thread.join()
        self._file.seek(0)
        self._file.truncate()
        self._file.close()


def flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as `a.b.c` → value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def _is_free(key: str) -> bool:
    return key.split(".")[0] in _FREE_GROUPS or key in _FREE_KEYS


def changed_keys(before: dict[str, Any], after: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose change between two launches would change the trajectory: key → (before, after)."""
    old, new = flatten(before), flatten(after)
    keys = sorted(set(old) | set(new))
    return {key: (old.get(key), new.get(key)) for key in keys if not _is_free(key) and old.get(key) != new.get(key)}


def accept_config(directory: Path, config: dict[str, Any], allow_change: list[str]) -> dict[str, tuple[Any, Any]]:
    """Compares the composed config with the run's and stores it.

    Returns:
        The allowed changes of this launch, empty on the first.

    Raises:
        ValueError: If a key differs that was not allowed; the message lists each with both values.
    """
    path = directory / "config.yaml"
    changes: dict[str, tuple[Any, Any]] = {}
    if path.exists():
        changes = changed_keys(yaml.safe_load(path.read_text()), config)
        refused = {
            key: values for key, values in changes.items() if not any(key == a or key.startswith(a + ".") for a in allow_change)
        }
        if refused:
            lines = "".join(f"\n  {key}: {old!r} -> {new!r}" for key, (old, new) in refused.items())
            raise ValueError(
                f"this launch differs from the run in {directory}:{lines}\nUse another name for a new run, or allow_change="
                f"[{','.join(refused)}] to go on with the change (it is recorded in run.json)"
            )
    write_atomically(path, yaml.safe_dump(config, sort_keys=False, allow_unicode=True).encode())
    return changes


class RunRecord:
    """`run.json`: versions, fingerprints, and one segment a launch.

    Args:
        directory: The run directory.

    Raises:
        ValueError: If it was written by a newer version.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / "run.json"
        self.content: dict[str, Any] = {"format_version": FORMAT_VERSION, "segments": []}
        if self._path.exists():
            self.content = json.loads(self._path.read_text())
            if self.content["format_version"] > FORMAT_VERSION:
                raise ValueError(
                    f"{self._path} has format {self.content['format_version']}, this version reads up to {FORMAT_VERSION}: "
                    "install a newer openwavlm"
                )

    def check_fingerprints(self, fingerprints: dict[str, str], allow_change: list[str]) -> None:
        """Refuses to go on with other data than the run began with.

        Raises:
            ValueError: If shards, labels or noise differ and `data` was not allowed to change.
        """
        known = self.content.get("fingerprints")
        if known is not None and known != fingerprints and "data" not in allow_change:
            names = sorted(k for k in set(known) | set(fingerprints) if known.get(k) != fingerprints.get(k))
            raise ValueError(
                f"the data of this run has changed since it began ({', '.join(names)}): restore it, start a new run under another "
                "name, or allow_change=[data]"
            )
        self.content["fingerprints"] = fingerprints

    def begin_segment(self, segment: dict[str, Any]) -> None:
        """Adds this launch."""
        self.content["segments"].append(segment)
        self.save()

    def save(self) -> None:
        """Writes the file."""
        write_atomically(self._path, (json.dumps(self.content, indent=1) + "\n").encode())
