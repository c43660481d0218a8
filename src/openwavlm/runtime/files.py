"""Readers of stored files: `.npy` arrays, JSON objects, lines of text.

A missing or damaged file is a `ValueError` that names it and ends with the caller's `remedy`; an error of the machine (`EMFILE`, `EIO`,
`ESTALE`) stays an `OSError` with the file.
"""

import ctypes
import errno
import json
import mmap
import os
import tokenize
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openwavlm.runtime.resources import retried

# Errors of numpy's header parser, which evaluates the header as a Python literal.
_BAD_HEADER = (
    *(ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError, OverflowError),
    *(MemoryError, RecursionError, tokenize.TokenError),
)
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def _unreadable(path: Path, error: OSError, remedy: str) -> Exception:
    """Error to raise for a file that cannot be opened or read."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        found = "is a folder" if error.errno == errno.EISDIR else "is missing"
        return ValueError(f"{path} {found}: {remedy}")
    return OSError(error.errno, error.strerror or str(error), str(path))


def read_bytes(path: Path, *, remedy: str) -> bytes:
    """Content of a file."""
    try:
        return retried(path.read_bytes, path)
    except OSError as error:
        raise _unreadable(path, error, remedy) from error


def read_array(
    path: Path, dtype: Any, *, shape: tuple[int | None, ...] = (None,), remedy: str, memory_map: bool = False
) -> np.ndarray:
    """Reads a `.npy` file as a C-contiguous array; compares the file's size with its header before it allocates memory.

    `shape` has None for an axis of any length; with `memory_map` the array is a read-only view of the file.
    """
    dtype = np.dtype(dtype)
    try:
        with path.open("rb") as file:
            rows, fortran, stored = _read_header(file, path, remedy)
            begin = file.tell()
            if stored != dtype or len(rows) != len(shape) or any(n not in (None, m) for n, m in zip(shape, rows, strict=True)):
                wanted = "×".join("any" if length is None else str(length) for length in shape)
                raise ValueError(
                    f"{path} must hold {wanted} entries of type {_name(dtype)}, but holds {'×'.join(map(str, rows)) or 'one'} of "
                    f"type {_name(stored)}: {remedy}"
                )
            if fortran and len(rows) > 1:
                raise ValueError(f"{path} must be stored row by row, but is stored column by column: {remedy}")
            expected = begin + int(np.prod(rows, dtype=object)) * dtype.itemsize
            size = os.fstat(file.fileno()).st_size
            if size != expected:
                raise ValueError(f"{path} must have {expected} bytes by its header, but has {size}: {remedy}")
            if memory_map:
                return map_open(file.fileno(), size, path)[begin:].view(dtype).reshape(rows)
            return np.fromfile(file, dtype, int(np.prod(rows))).reshape(rows)
    except OSError as error:
        raise _unreadable(path, error, remedy) from error


def map_open(descriptor: int, nbytes: int, path: Path) -> np.ndarray:
    """Maps an open file: uint8 (bytes,), read-only; the descriptor may be closed afterwards.

    Python's `mmap` keeps a descriptor open per mapping: two sources with 256 label packs each would need 1,024, the limit of a process on
    many machines.
    """
    if nbytes == 0:  # nothing to map
        return np.zeros(0, np.uint8)
    address = _libc.mmap(None, nbytes, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    if address == ctypes.c_void_p(-1).value:
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


def _read_header(file: Any, path: Path, remedy: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and type of the array; leaves the file at its data."""
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        rows, fortran, dtype = readers[version](file)
        if not all(type(length) is int and 0 <= length < 2**48 for length in rows) or dtype.hasobject:
            raise ValueError(f"shape {rows}, type {dtype}")
    except _BAD_HEADER as error:
        raise ValueError(f"{path} is damaged (no array begins there): {remedy}") from error
    return tuple(rows), bool(fortran), dtype


def _name(dtype: np.dtype[Any]) -> str:
    return dtype.name if dtype.names is None else f"({', '.join(dtype.names)})"


def read_lines(path: Path, *, remedy: str) -> list[str]:
    """Lines of a UTF-8 text file, which end at line feeds alone; the last one must have its line feed."""
    try:
        text = read_bytes(path, remedy=remedy).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged (byte {error.start} is not UTF-8): {remedy}") from error
    if text and not text.endswith("\n"):
        raise ValueError(f"{path} is damaged (its last line has no end): {remedy}")
    return text.split("\n")[:-1]


def read_json(path: Path, *, remedy: str) -> "Fields":
    """Reads a file that holds one JSON object."""
    text = read_bytes(path, remedy=remedy)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path} is damaged (no JSON): {remedy}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds {_kind(value)}: {remedy}")
    return Fields(value, str(path), remedy)


@dataclass(frozen=True)
class Fields:
    """Fields of a JSON object, read by name with type and range; errors name `where` (file, and place in it) and the field."""

    values: dict[str, Any]
    where: str
    remedy: str

    def integer(self, name: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """A whole number in [low, high]."""
        value = self._get(name)
        if type(value) is not int or not low <= value <= high:
            what = f"a whole number of at least {low}" if high == 2**63 - 1 else f"a whole number in [{low}, {high}]"
            raise self.refusal(name, what, value)
        return value

    def number(self, name: str) -> float:
        """A finite number."""
        value = self._get(name)
        if type(value) not in (int, float) or not abs(value) < float("inf"):
            raise self.refusal(name, "a number", value)
        return float(value)

    def text(self, name: str) -> str:
        """A text."""
        value = self._get(name)
        if not isinstance(value, str):
            raise self.refusal(name, "a text", value)
        return value

    def mapping(self, name: str) -> dict[str, Any]:
        """An object, unchecked."""
        value = self._get(name)
        if not isinstance(value, dict):
            raise self.refusal(name, "an object", value)
        return value

    def objects(self, name: str) -> "list[Fields]":
        """A list of objects."""
        value = self.lists(name)
        for number, entry in enumerate(value):
            if not isinstance(entry, dict):
                raise self.refusal(f"{name}[{number}]", "an object", entry)
        return [Fields(entry, f"{self.where}, {name}[{number}]", self.remedy) for number, entry in enumerate(value)]

    def texts(self, name: str, length: int | None = None) -> list[str]:
        """A list of texts, of a given length or any."""
        value = self.lists(name, length)
        if not all(isinstance(entry, str) for entry in value):
            raise self.refusal(name, "a list of texts", value)
        return value

    def integers(self, name: str, dtype: Any, length: int | None = None) -> np.ndarray:
        """A list of whole numbers in the range of `dtype`, of a given length or any, as a 1-d array."""
        value, bounds = self.lists(name, length), np.iinfo(dtype)
        low, high = int(bounds.min), int(bounds.max)
        if not all(type(entry) is int and low <= entry <= high for entry in value):
            raise self.refusal(name, f"a list of whole numbers in [{low}, {high}]", value)
        return np.array(value, dtype)

    def lists(self, name: str, length: int | None = None) -> list[Any]:
        """A list, of a given length or any; its entries are unchecked."""
        value = self._get(name)
        if not isinstance(value, list):
            raise self.refusal(name, "a list", value)
        if length is not None and len(value) != length:
            raise ValueError(f"{self.where}: {name} must have {length} entries, but has {len(value)}: {self.remedy}")
        return value

    def refusal(self, name: str, wanted: str, found: Any) -> ValueError:
        """Error for a field with a wrong value."""
        return ValueError(f"{self.where}: {name} must be {wanted}, but is {_kind(found)}: {self.remedy}")

    def _get(self, name: str) -> Any:
        if name not in self.values:
            raise ValueError(f"{self.where}: the field {name} is missing: {self.remedy}")
        return self.values[name]


def _kind(value: Any) -> str:
    """A value for an error message, shortened."""
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)} entries"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:56]} …"
