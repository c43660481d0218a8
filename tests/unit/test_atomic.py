"""Files appear whole or not at all, folders have one writer, and jobs run where they are few in this process."""

import hashlib
import os
from pathlib import Path

import pytest

from openwavlm.runtime import atomic, pool
from openwavlm.runtime.atomic import atomic_file, sha256_of, taking_turns, write_json, writer_lock
from openwavlm.runtime.pool import run_jobs


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_file_takes_its_name_when_all_of_it_is_written_and_synchronised(tmp_path, monkeypatch):
    done = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: done.append(os.path.realpath(f"/proc/self/fd/{descriptor}")))
    file, temporary = tmp_path / "a" / "b.bin", tmp_path / "a" / f"b.bin.{os.getpid()}.tmp"
    with atomic_file(file) as opened:
        opened.write(b"12")
        opened.write(b"3")
        assert names(tmp_path) == [temporary.name]
    assert file.read_bytes() == b"123" and names(tmp_path) == ["b.bin"]
    assert done == [str(temporary), str(file.parent)], "first the bytes, then the name"


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_beside_it(tmp_path):
    for before in ([], ["a.bin"]):
        with pytest.raises(RuntimeError, match="disk full"), atomic_file(tmp_path / "a.bin") as opened:
            opened.write(b"half")
            raise RuntimeError("disk full")
        assert names(tmp_path) == before
        if not before:
            write_json(tmp_path / "a.bin", 1)
    assert (tmp_path / "a.bin").read_bytes() == b"1\n"


def test_equal_values_are_equal_bytes_of_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, "é"], "a": None})
    assert (tmp_path / "a.json").read_bytes() == b'{\n "a": null,\n "b": [\n  1,\n  "\\u00e9"\n ]\n}\n'
    write_json(tmp_path / "a.json", {"b": 1, "a": 2}, indent=None)
    assert (tmp_path / "a.json").read_bytes() == b'{"a": 2, "b": 1}\n'
    assert sha256_of(tmp_path / "a.json") == hashlib.sha256(b'{"a": 2, "b": 1}\n').hexdigest()


def test_writers_of_parts_share_a_folder_and_a_writer_of_all_of_it_is_alone(tmp_path):
    folder = tmp_path / "new" / "set"
    for first in (False, True):
        for second in (False, True):
            with writer_lock(folder, shared=first):
                if first and second:
                    with writer_lock(folder, shared=True):
                        pass
                else:
                    with (
                        pytest.raises(ValueError, match=r"another process is writing to .*set"),
                        writer_lock(folder, shared=second),
                    ):
                        pass
    with writer_lock(folder):  # the lock ends with its block
        pass


def test_processes_that_take_turns_wait_for_each_other(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(atomic.fcntl, "flock", lambda file, kind: asked.append((Path(file.name).name, kind)))
    with taking_turns(tmp_path):
        assert asked == [(".turn", atomic.fcntl.LOCK_EX)], "an exclusive lock that is waited for"


def test_jobs_run_in_as_many_processes_as_there_are_jobs_and_alone_in_this_one(monkeypatch):
    asked = []

    def in_pool(function, jobs, workers):
        asked.append((list(jobs), workers))
        return map(function, jobs)

    monkeypatch.setattr(pool, "_in_pool", in_pool)
    for jobs, workers, expected in (
        ([], 4, []),
        ([1], 4, []),
        ([1, 2], 1, []),
        ([1, 2], 2, [([1, 2], 2)]),
        ([1, 2, 3], 2, [([1, 2, 3], 2)]),
        ([1, 2, 3], 8, [([1, 2, 3], 3)]),
    ):
        asked.clear()
        assert list(run_jobs(lambda job: 10 * job, jobs, workers=workers, visible=False)) == [10 * job for job in jobs]
        assert asked == expected
    with pytest.raises(ValueError, match="workers must be at least 1, but is 0"):
        list(run_jobs(abs, [1], workers=0))
