"""Cache of open files for reads by offset; its size adapts to the limit of descriptors."""

import errno
import os
import resource
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

_MOST = 1024
_SHARE = 4  # a quarter of the descriptors at most: sockets and batches from workers need some too


class OpenFiles:
    """Descriptors by reader and number of the file: `most` at once, by default a quarter of the soft limit, at most 1,024."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._files: OrderedDict[tuple[int, int], int] = OrderedDict()
        self.unlock()

    def unlock(self) -> None:
        """Creates a new lock, as a forked process must."""
        self._lock = threading.RLock()  # a garbage collection within `read` may close a reader

    def read(self, key: tuple[int, int], path: Path, nbytes: int, offset: int) -> bytes:
        """Reads up to `nbytes` at `offset` of a file, and opens it if necessary; `key` is the number of the reader and of its file.

        Raises:
            OSError: If the file cannot be opened or read; the next call opens it again.
        """
        with self._lock:
            descriptor = self._descriptor(key, path)
            try:
                return os.pread(descriptor, nbytes, offset)
            except OSError:
                os.close(self._files.pop(key))  # a stale descriptor (ESTALE) stays stale
                raise

    def close(self, reader: int) -> None:
        """Closes the files of a reader."""
        with self._lock:
            for key in [key for key in self._files if key[0] == reader]:
                os.close(self._files.pop(key))

    def _descriptor(self, key: tuple[int, int], path: Path) -> int:
        if key in self._files:
            self._files.move_to_end(key)
            return self._files[key]
        if self.most is None:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            self.most = _MOST if soft == resource.RLIM_INFINITY else max(1, min(_MOST, soft // _SHARE))
        self._close_oldest(self.most)
        self._files[key] = descriptor = self.spare(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return descriptor

    def _close_oldest(self, most: int) -> None:
        """Closes the files that were used least recently, until fewer than `most` are open."""
        while len(self._files) >= most:
            os.close(self._files.popitem(last=False)[1])

    def spare(self, action: Callable[[], Result]) -> Result:
        """Calls `action`, which needs a descriptor; if none is left, halves the number of open files for good and calls it again.

        Raises:
            OSError: As `action` does; EMFILE or ENFILE when no file of this cache is open any more.
        """
        while True:
            try:
                return action()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                    raise
            with self._lock:
                self.most = max(1, len(self._files) // 2)
                self._close_oldest(self.most)


OPEN_FILES = OpenFiles()
os.register_at_fork(after_in_child=OPEN_FILES.unlock)
