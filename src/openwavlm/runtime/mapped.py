"""Arrays that are mapped from files and hold no descriptor: Python's `mmap` keeps one for as long as a mapping lives.

Two sources with 256 packs of labels each would need 1,024 descriptors otherwise, which is all that many machines allow a process.
"""

import ctypes
import mmap
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.runtime.resources import naming, retried

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_FAILED = ctypes.c_void_p(-1).value


def map_bytes(path: Path) -> np.ndarray:
    """The bytes of a file, uint8 (bytes,), read-only, mapped.

    Raises:
        OSError: If it cannot be opened or mapped; it names the file.
    """
    return retried(lambda: _map(path), path)


def _map(path: Path) -> np.ndarray:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return map_open(descriptor, os.fstat(descriptor).st_size, path)
    finally:
        os.close(descriptor)


def map_open(descriptor: int, nbytes: int, path: Path) -> np.ndarray:
    """The bytes of an open file, as `map_bytes`; the descriptor may be closed afterwards."""
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
    """Gives the pages of mapped bytes back to the system; they are read again where they are used."""
    if len(content) and hasattr(mmap, "MADV_DONTNEED"):
        _libc.madvise(content.ctypes.data, len(content), mmap.MADV_DONTNEED)


def map_array(path: Path) -> np.ndarray:
    """The array of an `.npy` file, read-only, mapped.

    Raises:
        ValueError: If the file holds no array, or a shorter one than its header says.
        OSError: If it cannot be opened or mapped; it names the file.
    """
    content = map_bytes(path)
    with naming(path), path.open("rb") as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"{path} has the array format {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
        start = file.tell()
    nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if dtype.hasobject or nbytes > len(content) - start:
        raise ValueError(f"{path} does not hold the array that its header describes")
    return content[start : start + nbytes].view(dtype).reshape(shape, order="F" if fortran_order else "C")
