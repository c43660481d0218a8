"""Damage to files: what disks, copies and editors do to them, at random from a seed."""

import io
import json
import random
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_NESTED = "[" * 3000 + "]" * 3000
_VALUES = [
    10**30,
    -1,
    0,
    1,
    2**31,
    2**63,
    float("nan"),
    float("inf"),
    -0.5,
    1e308,
    True,
    None,
    "",
    "x",
    "9",
    [],
    {},
    [1],
    {"a": 1},
]
_TOKENS = [
    "1e400",
    "-1",
    "nan",
    "99999999999999999999",
    "",
    "null",
    "x",
    "0",
    "[",
    "{",
    '"',
    "\t",
    "\0",
    "!!python/name:os.system",
]


def _place(generator: random.Random, content: bytes | bytearray) -> int:
    # Half of them in the header, where few bytes decide much.
    return generator.randrange(min(len(content), 512) if generator.random() < 0.5 else len(content))


def flip_bits(generator: random.Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(generator.choice([1, 1, 1, 2, 8])):
        damaged[_place(generator, content)] ^= 1 << generator.randrange(8)
    return bytes(damaged)


def truncate(generator: random.Random, content: bytes) -> bytes:
    return content[: generator.choice([generator.randrange(len(content)), len(content) - 1])]


def extend(generator: random.Random, content: bytes) -> bytes:
    return content + generator.choice([b"\0", b"\n", b"x", content[:100] or b"y", generator.randbytes(64)])


def zero_block(generator: random.Random, content: bytes) -> bytes:
    start, length = _place(generator, content), generator.choice([1, 8, 512, 4096])
    return content[:start] + bytes(len(content[start : start + length])) + content[start + length :]


def duplicate_block(generator: random.Random, content: bytes) -> bytes:
    start, length = _place(generator, content), generator.choice([1, 16, 512])
    return content[: start + length] + content[start:]


def remove_block(generator: random.Random, content: bytes) -> bytes:
    start, length = _place(generator, content), generator.choice([1, 16, 512])
    return content[:start] + content[start + length :]


def empty(generator: random.Random, content: bytes) -> bytes:
    return b""


def replace_token(generator: random.Random, content: bytes) -> bytes:
    """A number or a word of a text by another one."""
    text = content.decode(errors="surrogateescape")
    found = list(re.finditer(r"-?\d[\d.e+-]*|\w+", text))
    if not found:
        return content + b"?"
    match = generator.choice(found)
    return (text[: match.start()] + generator.choice(_TOKENS) + text[match.end() :]).encode(errors="surrogateescape")


def shuffle_lines(generator: random.Random, content: bytes) -> bytes:
    lines = content.split(b"\n")
    change = generator.randrange(3)
    place = generator.randrange(len(lines))
    if change == 0:
        del lines[place]
    elif change == 1:
        lines.insert(place, generator.choice(lines))
    else:
        other = generator.randrange(len(lines))
        lines[place], lines[other] = lines[other], lines[place]
    return b"\n".join(lines)


def _nodes(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of every value below."""
    found = []
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        found.append((value, key))
        if isinstance(value[key], dict | list):
            found += _nodes(value[key])
    return found


def edit_json(generator: random.Random, content: bytes, *, keep_seal: bool = True) -> bytes:
    """A value replaced or a key deleted; without the seal as of a version that wrote none."""
    value = json.loads(content)
    if not keep_seal:
        value.pop("seal", None)
        if "configs" in value:  # a run.json of format 1
            value["format_version"] = 1
    nodes = _nodes(value)
    if not nodes:
        return b"[]"
    container, key = generator.choice(nodes)
    if generator.random() < 0.25:
        del container[key]
    elif generator.random() < 0.1:
        container[key] = "@nested@"
    else:
        container[key] = generator.choice(_VALUES)
    return json.dumps(value).replace('"@nested@"', _NESTED).encode()


def edit_unsealed_json(generator: random.Random, content: bytes) -> bytes:
    return edit_json(generator, content, keep_seal=False)


def edit_npy(generator: random.Random, content: bytes) -> bytes:
    """Another header before the same numbers."""
    array = np.load(io.BytesIO(content))
    shape = generator.choice([(10**12,), (10**30,), (-1,), (len(array) + 1,), (), array.shape[::-1], (*array.shape, 1), (1.5,)])
    kind = generator.choice(["|O", "<f8", ">u2", "|V3", "<U9", "zz", array.dtype.str, array.dtype.str])
    fortran = generator.choice([False, True])
    header = f"{{'descr': {kind!r}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    if generator.random() < 0.2:
        header = generator.choice(["(" * 4000, "{", "{'descr': '<u4'}", "1", "__import__('os')", header[:-3]])
    body = header.encode().ljust(118) + b"\n"
    magic = generator.choice([b"\x93NUMPY\x01\x00"] * 4 + [b"\x93NUMPY\x03\x00", b"\x93NUMPY\x09\x09"])
    return magic + len(body).to_bytes(2, "little") + body + content[128:]


def edit_zip(generator: random.Random, content: bytes) -> bytes:
    """A member of an archive removed, emptied, doubled or compressed."""
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    names = source.namelist()
    chosen, change = generator.choice(names), generator.randrange(4)
    with zipfile.ZipFile(target, "w") as archive:
        for name in names:
            with source.open(name) as member:
                member._expected_crc = None  # of an archive without checksums
                held = member.read()
            if name != chosen:
                archive.writestr(name, held)
            elif change == 1:
                archive.writestr(name, b"")
            elif change == 2:
                archive.writestr(name, flip_bits(generator, held) if held else b"x")
            elif change == 3:
                archive.writestr(name, held, zipfile.ZIP_DEFLATED)
    return target.getvalue()


Mutation = Callable[[random.Random, bytes], bytes]
BYTES: list[Mutation] = [flip_bits, flip_bits, flip_bits, truncate, extend, zero_block, duplicate_block, remove_block, empty]
# What leaves a well-formed file with other content, so that only a crash is a fault.
FREE = {edit_unsealed_json}


def mutations_of(path: Path) -> list[Mutation]:
    """What may happen to a file of this kind."""
    suffix = path.suffix.lower()
    of_kind: list[Mutation] = {
        ".json": [edit_json, edit_json, edit_unsealed_json, edit_unsealed_json, replace_token],
        ".npy": [edit_npy, edit_npy, edit_npy],
        ".ckpt": [edit_zip, edit_zip],
        ".pt": [edit_zip, edit_zip] if zipfile.is_zipfile(path) else [],
        ".u16": [],
        ".safetensors": [],
    }.get(suffix, [replace_token, replace_token, shuffle_lines, shuffle_lines])
    return BYTES + of_kind


class Damage:
    """One damaged file, made well again at the end of the block.

    Args:
        path: The file.
        others: Whole files of the same kind, one of which may take its place.
        seed: Decides what happens.
        alone: Whether the file is read by itself, so that nobody can miss it or know another of its kind in its place.
    """

    def __init__(self, path: Path, others: list[Path], seed: str, *, alone: bool = False) -> None:
        self.path, self._content = path, path.read_bytes()
        generator = random.Random(seed)
        self.free, self.what = False, "a folder in its place"
        kind = generator.random()
        if kind < 0.01:
            path.unlink()
            path.mkdir()
            return
        if kind < 0.02 and not alone:
            path.unlink()
            self.what = "missing"
            return
        if kind < 0.05 and others and not alone:
            other = generator.choice(others)
            path.write_bytes(other.read_bytes())
            self.what = f"{other.name} in its place"
            return
        mutation = generator.choice(mutations_of(path)) if self._content else extend
        self.free, self.what = mutation in FREE, mutation.__name__
        path.write_bytes(mutation(generator, self._content))

    def heal(self) -> None:
        """Puts the file back as it was."""
        if self.path.is_dir():
            shutil.rmtree(self.path)
        self.path.write_bytes(self._content)
