"""Errors of the machine: no descriptor, no memory, no space, a failing disk or file server. They do not depend on the data."""

import errno
import os
import re
import resource
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

# All others (EMFILE, EIO, ESTALE, ENOSPC, ENOMEM, …) describe the machine, whatever the file.
_OF_THE_FILE = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM),
        *(errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.ESPIPE, errno.EILSEQ, errno.EOVERFLOW, errno.EFBIG),
    }
)
_TRANSIENT = frozenset({errno.EIO, errno.ESTALE, errno.EINTR, errno.EAGAIN, errno.ETIMEDOUT})
_PAUSES_S = (0.1, 1.0, 5.0)
_MOST_DESCRIPTORS = 65_536
_REMEDIES = {
    errno.EMFILE: "this process may not open more files: raise the limit with `ulimit -n 65536`, or lower loader.workers",
    errno.ENFILE: "this machine may not open more files: end other programs, or raise fs.file-max",
    errno.ENOMEM: "memory ran out: use fewer workers, or give the job more memory",
    errno.ENOSPC: "the disk is full: free some space and run the same command again",
    errno.EDQUOT: "the quota is used up: free some space and run the same command again",
    errno.EROFS: "this file system is read-only: name a folder elsewhere",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "access is denied: change its permissions, or name another path"),
    errno.ENOTDIR: "a part of this path is a file and not a folder: name another path",
    errno.EISDIR: "a folder is where a file should be: move it away, or name another path",
    errno.ENAMETOOLONG: "a name in this path is too long for the file system: shorten it",
    errno.EFBIG: "the file may not grow further: raise the limit with `ulimit -f unlimited`, or name another path",
    errno.EIO: "the disk or file server failed: have it checked, and run the same command again",
    errno.ESTALE: "the file server lost this file: have it checked, and run the same command again",
}
# torch reports an error of the machine as text: `unable to mmap 178023 bytes from file <a.ckpt>: Cannot allocate memory (12)`.
_OF_TORCH = re.compile(r"unable to (?:open|mmap|resize|fstat|stat)\b.*\((\d+)\)")


def raise_descriptor_limit() -> int:
    """Raises this process's soft limit of open files to its hard limit, at most 65,536, and returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MOST_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (ValueError, OSError):  # macOS allows less than its hard limit says
        return soft
    return wanted


def of_the_file(error: OSError) -> bool:
    """True if an error describes the file (absent, forbidden, malformed), not the machine."""
    return error.errno is None or error.errno in _OF_THE_FILE


def check_of_the_file(error: BaseException, path: Path | str = "") -> None:
    """Raises a caught error again if it describes the machine, with the file's name, so that no file is taken for damaged or missing."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, RuntimeError) and (hidden := _OF_TORCH.search(str(error))):
        error = OSError(int(hidden[1]), os.strerror(int(hidden[1])))
    if isinstance(error, OSError) and not of_the_file(error):
        with naming(path):
            raise error


def read_again(action: Callable[[], Result], path: Path) -> Result:
    """Calls `action`, which reads a file through a library, and calls it again if it fails although the file is readable.

    Libraries report a failed read as a damaged file; if the machine fails to read it, an `OSError` with its name is raised.
    """
    try:
        return action()
    except Exception as error:
        check_of_the_file(error, path)
        _check_reads(path)
    return action()


def is_archive(path: Path) -> bool:
    """True if a file is a zip archive; raises an `OSError` if the machine fails to read it, where `zipfile` returns False."""
    if not zipfile.is_zipfile(path):
        _check_reads(path)
    return zipfile.is_zipfile(path)


def _check_reads(path: Path) -> None:
    """Reads a file to its end; raises errors of the machine alone."""

    def read() -> None:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 22):
                pass

    try:
        retried(read, path)
    except OSError as error:
        check_of_the_file(error, path)


def retried(action: Callable[[], Result], path: Path | str) -> Result:
    """Calls `action` again after a pause if the disk or file server fails for a moment (EIO, ESTALE, EINTR, EAGAIN).

    Raises:
        OSError: The last failure, with the name of the file, `path`.
    """
    with naming(path):
        for pause_s in _PAUSES_S:
            try:
                return action()
            except OSError as error:
                if error.errno not in _TRANSIENT:
                    raise
            time.sleep(pause_s)
        return action()


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Adds the file's name to an `OSError` without one, as those of `write` and `fsync`; decodes a name in bytes."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, bytes):
            raise OSError(error.errno, error.strerror, os.fsdecode(error.filename)) from error
        if error.filename is not None or error.errno is None or not str(path):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def explained(error: BaseException, *, debug_key: bool = True) -> str:
    """Message of an error; for an error of the machine with errno, file and remedy.

    Where the file is unknown, the message names the key `debug` of the command, unless `debug_key` is False.
    """
    if isinstance(error, MemoryError):
        return f"memory ran out{f' ({error})' if str(error) else ''}: use fewer workers, or give the job more memory"
    if isinstance(error, OSError) and error.errno in _REMEDIES and error.strerror:
        where = " (debug=true shows at which file)" if error.filename is None and debug_key else ""
        return f"{error}{where}: {_REMEDIES[error.errno]}"
    return str(error)
