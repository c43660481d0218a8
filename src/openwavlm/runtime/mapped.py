"""Files mapped without a descriptor; Python's `mmap` keeps one open per mapping.

Two sources with 256 label packs each would need 1,024 descriptors, the limit of a process on many machines.
"""

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.runtime.resources import retried

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


def map_bytes(path: Path) -> np.ndarray:
    """Bytes of a file, uint8 (bytes,), read-only, mapped; an `OSError` names the file."""

    def mapped() -> np.ndarray:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return map_open(descriptor, os.fstat(descriptor).st_size, path)
        finally:
            os.close(descriptor)

    return retried(mapped, path)


def map_open(descriptor: int, nbytes: int, path: Path) -> np.ndarray:
    """`map_bytes` of an open file; the descriptor may be closed afterwards."""
    if nbytes == 0:  # nothing to map
        return np.zeros(0, np.uint8)
    address = _libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == _FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(path))
    buffer: Any = (ctypes.c_uint8 * nbytes).from_address(address)
    weakref.finalize(buffer, _libc.munmap, address, nbytes)
    array = np.frombuffer(buffer, np.uint8)
    array.flags.writeable = False
    return array


def release(content: np.ndarray) -> None:
    """Frees the memory of mapped bytes; the next access reads them from the file again."""
    if len(content):
        _libc.madvise(content.ctypes.data, len(content), mmap.MADV_DONTNEED)
