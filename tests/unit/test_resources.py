"""A machine that fails (descriptors, disk, file server, memory) is not taken for bad data: tried again, then named with its errno."""

import builtins
import errno
import io
import itertools
import json
import os
import re
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from openwavlm.audio import read
from openwavlm.audio.errors import AudioError
from openwavlm.audio.read import decode_or_stop, probe_seconds
from openwavlm.checkpoints.pickles import read_pickle
from openwavlm.labels.unfinished import tidy
from openwavlm.runtime import open_files, resources
from openwavlm.runtime.atomic import sha256_of
from openwavlm.runtime.files import map_open, read_array
from openwavlm.runtime.open_files import OpenFiles
from openwavlm.runtime.resources import (
    check_of_the_file,
    explained,
    naming,
    of_the_file,
    raise_descriptor_limit,
    read_again,
    retried,
)
from openwavlm.shards import reader as reader_module
from openwavlm.shards.index import Index
from openwavlm.shards.prepare import make_shards
from openwavlm.shards.reader import ShardReader, UnreadableAudio, check_shards
from openwavlm.training.checkpoint_reader import load
from synthetic import make_corpus, make_shard_set, write_speech_like

MACHINE = [errno.EMFILE, errno.ENFILE, errno.EIO, errno.ESTALE, errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EROFS]
TRANSIENT = [errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN]


@pytest.fixture(scope="module")
def shard_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resources")
    return make_shard_set(folder, speakers=3, utterances=4, seconds=(0.6, 1.0), utterances_per_shard=2)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses, none of which is waited for."""
    pauses: list[float] = []
    monkeypatch.setattr(resources.time, "sleep", pauses.append)
    return pauses


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def failing(real: Callable, code: int, times: int | None = None) -> Callable:
    """`real`, which fails with an errno: `times` times, or always."""
    left = itertools.count() if times is None else iter(range(times))

    def call(*arguments: object, **named: object) -> object:
        if next(left, None) is not None:
            raise OSError(code, os.strerror(code))
        return real(*arguments, **named)

    return call


# --- retries ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", TRANSIENT)
def test_a_transient_failure_is_tried_again_after_growing_pauses(code, slept):
    assert retried(failing(lambda: 7, code, times=3), "/shard.tar") == 7
    assert slept == sorted(slept) and len(slept) == 3


@pytest.mark.parametrize("code", TRANSIENT)
def test_a_lasting_failure_ends_with_its_errno_and_the_file(code, slept):
    with pytest.raises(OSError, match=re.escape(os.strerror(code))) as failure:
        retried(failing(lambda: 7, code), "/shard.tar")
    assert failure.value.errno == code and failure.value.filename == "/shard.tar" and len(slept) == 3


@pytest.mark.parametrize("code", sorted(set(MACHINE) - set(TRANSIENT)))
def test_what_does_not_pass_by_itself_is_not_tried_again(code, slept):
    with pytest.raises(OSError) as failure:
        retried(failing(lambda: 7, code), "/shard.tar")
    assert failure.value.errno == code and failure.value.filename == "/shard.tar" and not slept


def test_errors_of_a_file_and_of_the_machine_are_told_apart():
    of_a_file = {errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG}
    assert {code for code in [*MACHINE, *TRANSIENT, *of_a_file] if of_the_file(OSError(code, "x"))} == of_a_file
    assert of_the_file(OSError("damaged"))  # as numpy raises it
    check_of_the_file(ValueError("damaged"))
    check_of_the_file(FileNotFoundError(errno.ENOENT, "x"))
    with pytest.raises(MemoryError):
        check_of_the_file(MemoryError())
    with pytest.raises(OSError, match=r"\[Errno 5\] x: '/a'"):
        check_of_the_file(OSError(errno.EIO, "x"), Path("/a"))


def test_a_name_is_added_only_to_an_error_that_has_none():
    with pytest.raises(OSError, match=r"\[Errno 28\] full: 'a'"), naming("a"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match=r"\[Errno 28\] full: 'b'"), naming("a"):
        raise OSError(errno.ENOSPC, "full", "b")


def test_the_sentence_has_errno_file_and_way_out():
    assert explained(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/run.json")) == (
        "[Errno 28] No space left on device: 'a/run.json': the disk is full: free some space and run the same command again"
    )
    assert "ulimit -n" in explained(OSError(errno.EMFILE, "Too many open files", "a"))
    assert "read-only: name a folder elsewhere" in explained(OSError(errno.EROFS, "Read-only file system", "a"))
    assert explained(MemoryError()).startswith("memory ran out: use fewer workers")
    assert explained(ValueError("x must be y")) == "x must be y"


def test_a_name_in_bytes_becomes_text_and_an_error_without_a_name_says_how_to_find_it():
    with pytest.raises(OSError, match=r"\[Errno 30\] read-only: 'b'") as failure, naming("a"):
        raise OSError(errno.EROFS, "read-only", b"b")
    assert failure.value.filename == "b"
    full = OSError(errno.ENOSPC, "No space left on device")
    assert "(debug=true shows at which file): the disk is full" in explained(full)
    assert "debug" not in explained(full, debug_key=False), "a command without that key"


# --- libraries that take a failed read for a damaged file -----------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "step-00000003.ckpt"
    torch.save({"weights": torch.arange(5)}, path)
    return path


class Refusing(io.FileIO):
    """A file whose reads fail, `left` of them or all."""

    code, left = errno.EIO, itertools.count()

    def _fail(self) -> None:
        if next(Refusing.left, None) is not None:
            raise OSError(Refusing.code, os.strerror(Refusing.code))

    def read(self, *arguments: int) -> bytes:
        self._fail()
        return super().read(*arguments)

    def readinto(self, buffer: object) -> int:
        self._fail()
        return super().readinto(buffer)


def refuse_reads(monkeypatch: pytest.MonkeyPatch, path: Path, code: int, times: int | None = None) -> None:
    """Lets reads from an open file fail, though opening it works."""
    real = io.open
    Refusing.code, Refusing.left = code, itertools.count() if times is None else iter(range(times))

    def opened(file: object, mode: str = "r", buffering: int = -1, *rest: object, **named: object) -> object:
        if not isinstance(file, str | Path) or Path(file) != path:
            return real(file, mode, buffering, *rest, **named)
        raw = Refusing(str(file), mode.replace("b", ""))
        return io.BufferedReader(raw) if buffering else raw

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)


READERS = {
    "a run's checkpoint": load,
    "published weights": lambda path: read_pickle(path, tensors_alone=True),
    "its checksum": sha256_of,
}


@pytest.mark.parametrize("reader", list(READERS))
@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_file_that_the_machine_does_not_let_be_read_is_not_damaged(checkpoint, monkeypatch, slept, reader, code):
    refuse_reads(monkeypatch, checkpoint, code)
    with pytest.raises(OSError) as failure:
        READERS[reader](checkpoint)
    assert failure.value.errno == code and failure.value.filename == str(checkpoint)


@pytest.mark.parametrize("reader", list(READERS))
def test_a_file_whose_first_read_fails_is_read_again(checkpoint, monkeypatch, slept, reader):
    expected = READERS[reader](checkpoint)
    refuse_reads(monkeypatch, checkpoint, errno.EIO, times=1)
    found = READERS[reader](checkpoint)
    assert found == expected if isinstance(expected, str) else torch.equal(found["weights"], torch.arange(5))


def test_a_file_that_torch_cannot_map_is_not_damaged(checkpoint, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(f"unable to mmap 1780 bytes from file <{checkpoint}>: Cannot allocate memory ({errno.ENOMEM})")

    monkeypatch.setattr(torch, "load", refuse)
    for reader in ("a run's checkpoint", "published weights"):
        with pytest.raises(OSError, match=r"\[Errno 12\] Cannot allocate memory: '.*step-00000003.ckpt'"):
            READERS[reader](checkpoint)


def test_a_damaged_file_is_damaged_after_a_second_look(checkpoint):
    checkpoint.write_bytes(checkpoint.read_bytes()[:-30])
    with pytest.raises(ValueError, match="is damaged"):
        load(checkpoint)
    calls = []
    with pytest.raises(ValueError, match="bad"):
        read_again(lambda: calls.append(1) or int("bad"), checkpoint)
    assert len(calls) == 2


def test_finished_work_of_which_the_mark_cannot_be_read_is_kept(tmp_path, monkeypatch):
    mark = tmp_path / "tasks" / "pack-00000.json"
    mark.parent.mkdir()
    mark.write_text(json.dumps({"record": {"shards": [{"identity": "a"}]}}))
    (tmp_path / "pack-00000.u16").touch()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", failing(Path.read_text, errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            tidy(tmp_path, {"packs": []}, alone=True)
    assert mark.exists() and (tmp_path / "pack-00000.u16").exists()
    tidy(tmp_path, {"packs": []}, alone=True)
    assert mark.exists()


# --- shards -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["open", "pread"])
@pytest.mark.parametrize("code", MACHINE)
def test_a_failing_machine_is_never_an_unreadable_row(shard_set, monkeypatch, slept, call, code):
    index = Index.open(shard_set)
    monkeypatch.setattr(reader_module, "OPEN_FILES", OpenFiles(most=2))
    monkeypatch.setattr(open_files.os, call, failing(getattr(os, call), code))
    with pytest.raises(OSError) as failure:
        ShardReader(index).read(0)
    assert failure.value.errno == code and failure.value.filename == str(index.path / index.shards[0].name)
    assert bool(slept) == (code in TRANSIENT)


@pytest.mark.parametrize("call", ["open", "pread"])
@pytest.mark.parametrize("code", TRANSIENT)
def test_a_row_is_read_after_a_failure_that_passes_from_a_file_that_is_opened_anew(shard_set, monkeypatch, slept, call, code):
    reader, opened, real = ShardReader(Index.open(shard_set)), [], os.open
    expected = ShardReader(shard_set).read(0)
    monkeypatch.setattr(reader_module, "OPEN_FILES", OpenFiles())
    monkeypatch.setattr(open_files.os, "open", lambda *arguments: opened.append(arguments[0]) or real(*arguments))
    monkeypatch.setattr(open_files.os, call, failing(getattr(open_files.os, call), code, times=2))
    np.testing.assert_array_equal(reader.read(0), expected)
    assert len(opened) == (3 if call == "pread" else 1) and len(slept) == 2


def test_a_file_that_is_gone_or_forbidden_is_an_unreadable_row(shard_set, monkeypatch):
    index = Index.open(shard_set)
    for code in (errno.ENOENT, errno.EACCES):
        monkeypatch.setattr(reader_module, "OPEN_FILES", OpenFiles())
        monkeypatch.setattr(open_files.os, "open", failing(os.open, code))
        with pytest.raises(UnreadableAudio, match=os.strerror(code)):
            ShardReader(index).read(0)
        monkeypatch.undo()


@pytest.mark.parametrize("code", MACHINE)
def test_a_failing_machine_is_no_damaged_index_and_no_missing_shard(shard_set, monkeypatch, slept, code):
    index = Index.open(shard_set)
    with monkeypatch.context() as patch:
        patch.setattr("openwavlm.runtime.files.map_open", failing(map_open, code))
        with pytest.raises(OSError) as failure:
            Index.open(shard_set)
        assert failure.value.errno == code and failure.value.filename.startswith(str(shard_set / "index"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", failing(Path.open, code))
        with pytest.raises(OSError) as failure:
            check_shards(index)
        assert failure.value.errno == code and failure.value.filename == str(shard_set / index.shards[0].name)


def test_fewer_files_stay_open_where_the_limit_is_met_and_reading_goes_on(shard_set, monkeypatch):
    files = OpenFiles(most=100)
    monkeypatch.setattr(reader_module, "OPEN_FILES", files)
    index, real = Index.open(shard_set), os.open

    def limited(*arguments: object) -> int:
        if len(files._files) >= 3:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(arguments[0]))
        return real(*arguments)

    reader = ShardReader(index)
    expected = [reader.read(row) for row in range(len(index))]
    reader.close()
    monkeypatch.setattr(open_files.os, "open", limited)
    for row in range(len(index)):
        np.testing.assert_array_equal(reader.read(row), expected[row])
    assert 1 <= files.most < 3 and len(files._files) <= 3
    reader.close()
    assert not files._files


def test_the_number_of_open_files_follows_from_the_limit(shard_set, monkeypatch):
    for soft, most in ((1024, 256), (65_536, 1024), (resource.RLIM_INFINITY, 1024), (2, 1)):
        files = OpenFiles()
        monkeypatch.setattr(open_files.resource, "getrlimit", lambda _, soft=soft: (soft, soft))
        files.read((0, 0), shard_set / "settings.json", 1, 0)
        assert files.most == most
        files.close(0)


# --- the limit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((1024, 4096), 4096),
        ((4096, 4096), 4096),
        ((1024, 10**6), 65_536),
        ((1024, resource.RLIM_INFINITY), 65_536),
        ((10**6, 10**6), 10**6),
    ],
)
def test_the_soft_limit_is_raised_to_the_hard_one_and_never_lowered(monkeypatch, limits, expected):
    now = [limits]
    monkeypatch.setattr(resources.resource, "getrlimit", lambda _: now[0])
    monkeypatch.setattr(resources.resource, "setrlimit", lambda _, new: now.append(new))
    assert raise_descriptor_limit() == expected
    assert now[-1][0] == expected and now[-1][1] == limits[1]


def test_a_limit_that_may_not_be_raised_is_left(monkeypatch):
    def refuse(*_: object) -> None:
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resources.resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resources.resource, "setrlimit", refuse)
    assert raise_descriptor_limit() == 256


# --- mappings -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists a process's descriptors")
def test_a_mapped_array_equals_its_file_and_holds_no_descriptor(tmp_path):
    table = np.array([(1, 2.5), (3, -1.0)], dtype=[("a", "<u4"), ("b", "<f8")])
    arrays = {
        "flat": np.arange(1000, dtype=np.uint64),
        "matrix": np.arange(12.0).reshape(3, 4),
        "table": table,
    }
    before = open_descriptors()
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
        mapped = read_array(
            tmp_path / f"{name}.npy", array.dtype, shape=(None,) * array.ndim, remedy="write it again", memory_map=True
        )
        np.testing.assert_array_equal(mapped, array)
        assert mapped.dtype == array.dtype and not mapped.flags.writeable
        arrays[name] = mapped  # still there
    assert open_descriptors() == before
    with (tmp_path / "flat.npy").open("rb") as file:
        content = file.read()
        assert bytes(map_open(file.fileno(), len(content), tmp_path)) == content


def test_a_file_that_was_cut_is_no_array(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(100))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="must have 928 bytes by its header, but has 927: write it again"):
        read_array(path, np.int64, remedy="write it again", memory_map=True)


# --- recordings ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_speech_like(tmp_path_factory.mktemp("audio") / "a.flac", 1.0)


@pytest.mark.parametrize("code", MACHINE)
def test_a_failing_machine_is_no_bad_recording(recording, monkeypatch, slept, code):
    monkeypatch.setattr("openwavlm.audio.read.os.open", failing(os.open, code))
    with pytest.raises(OSError) as failure:
        decode_or_stop(recording)
    assert failure.value.errno == code and failure.value.filename == str(recording)
    with pytest.raises(OSError) as failure:
        probe_seconds(recording)
    assert failure.value.errno == code


def test_a_recording_that_failed_once_because_a_library_could_not_read_it_is_decoded_again(recording, monkeypatch):
    expected, real, calls = decode_or_stop(recording), read.decode, []

    def once(path: Path, **arguments: object) -> object:
        calls.append(path)
        if len(calls) == 1:
            raise AudioError("truncated", "libsndfile was refused a block")
        return real(path, **arguments)

    monkeypatch.setattr(read, "decode", once)
    np.testing.assert_array_equal(decode_or_stop(recording).samples, expected.samples)
    assert len(calls) == 2


def test_a_bad_recording_is_refused_after_a_second_look(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"no audio" * 100)
    for name, reason in (("a.wav", "unreadable"), ("b.wav", "missing")):
        with pytest.raises(AudioError, match=reason):
            decode_or_stop(tmp_path / name)


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EIO, errno.ENOSPC])
def test_preparation_stops_with_errno_and_file_and_skips_nothing(tmp_path, monkeypatch, slept, code):
    corpus, output = make_corpus(tmp_path / "corpus", speakers=1, utterances=3, seconds=(0.5, 0.6)), tmp_path / "shards"
    bad, real = sorted(corpus.rglob("*.flac"))[1], os.open

    def guarded(path: Path, *arguments: object, **named: object) -> object:
        if path == bad:
            raise OSError(code, os.strerror(code), str(path))
        return real(path, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("openwavlm.audio.read.os.open", guarded)
        with pytest.raises(OSError, match=re.escape(f"[Errno {code}] {os.strerror(code)}: '{bad}'")):
            make_shards(input=corpus, output=output, source="s")
    assert not (output / "skipped.tsv").exists() and not list(output.glob("done/*/*"))
    assert make_shards(input=corpus, output=output, source="s")["utterances"] == 3
