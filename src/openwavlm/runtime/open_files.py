"""The files that this process reads from by place, the last used ones kept open; their number adapts to the limit of descriptors."""

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
_SHARE = 4  # this part of the descriptors at most: sockets, mappings and batches from workers need some too


class OpenFiles:
    """Descriptors by reader and number of the file.

    Attributes:
        most: How many stay open; None = a quarter of the soft limit, 1,024 at most, found at the first use.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self._files: OrderedDict[tuple[int, int], int] = OrderedDict()
        self.unlock()

    def unlock(self) -> None:
        """Begins with a free lock, as a forked process must."""
        self._lock = threading.RLock()  # a garbage collection within `read` may close a reader

    def read(self, key: tuple[int, int], path: Path, nbytes: int, offset: int) -> bytes:
        """Reads bytes of a file, which is opened where it is not open.

        Args:
            key: Number of the reader and of its file.
            path: The file.
            nbytes: How many; fewer at its end.
            offset: Where they begin.

        Raises:
            OSError: If it cannot be opened or read; the file is closed then, and the next call opens it again.
        """
        with self._lock:
            descriptor = self._descriptor(key, path)
            try:
                return os.pread(descriptor, nbytes, offset)
            except OSError:
                os.close(self._files.pop(key))  # ESTALE stays with a descriptor
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
        while len(self._files) >= self.most:
            os.close(self._files.popitem(last=False)[1])
        self._files[key] = descriptor = self.spare(lambda: os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        return descriptor

    def spare(self, action: Callable[[], Result]) -> Result:
        """Calls `action`, which needs a descriptor; where there is none, half of the open files make room, from now on.

        Raises:
            OSError: As `action` does; EMFILE or ENFILE when no file is open any more.
        """
        while True:
            try:
                return action()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._files:
                    raise
            with self._lock:
                self.most = max(1, len(self._files) // 2)
                while len(self._files) >= self.most and self._files:
                    os.close(self._files.popitem(last=False)[1])


OPEN_FILES = OpenFiles()
os.register_at_fork(after_in_child=OPEN_FILES.unlock)
