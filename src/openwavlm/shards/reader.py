"""Reads utterances, or pieces of them, from the shards without a tar reader: one `pread` of the FLAC payload, one decode."""

import itertools
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile

from openwavlm.audio.containers.flac import flac_md5
from openwavlm.audio.decoders.libsndfile import SequentialFile, file_in_memory
from openwavlm.audio.encode import pcm_id
from openwavlm.runtime.open_files import OPEN_FILES
from openwavlm.runtime.resources import check_of_the_file, naming, retried
from openwavlm.shards.index import Index

_MALLOC_FAILED = 17  # of libsndfile
_TAR_BLOCK = 512
_numbers = itertools.count()


class UnreadableAudio(ValueError):  # noqa: N818
    """Audio of a row that is missing, differs from the index, or does not decode."""


class ShardReader:
    """Reader of a shard set's audio; survives `fork`, since `pread` shares no file position. Files stay open as `OPEN_FILES` allows."""

    def __init__(self, index: Index | Path | str) -> None:
        self.index = index if isinstance(index, Index) else Index.open(index, check=False)
        self._number = next(_numbers)

    def read(
        self, row: int, start_sample: int = 0, num_samples: int | None = None, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Reads a row's utterance or a piece of it: int16 (num_samples,).

        Args:
            row: Row of the index.
            start_sample: First sample.
            num_samples: Number of samples; None for the rest of the utterance.
            out: Array to decode into and to return, contiguous; after an error it may hold part of the audio.

        Raises:
            UnreadableAudio: If the shard is missing or too short, holds another utterance at this place, or does not decode.
            OSError: If the machine fails (too many open files, repeated errors of a disk or file server); names the file.
            MemoryError: If no memory is left for decoding.
        """
        index = self.index
        shard, nbytes = int(index.shard[row]), int(index.nbytes[row])
        if num_samples is None:
            num_samples = int(index.num_samples[row]) - start_sample
        path, offset = index.path / index.shards[shard].name, int(index.offset[row])
        try:
            payload = retried(lambda: OPEN_FILES.read((self._number, shard), path, nbytes, offset), path)
        except OSError as error:
            check_of_the_file(error, path)
            raise UnreadableAudio(self._about(row, error.strerror or str(error))) from error
        if pcm_id(flac_md5(payload)) != int(index.pcm[row]):
            raise UnreadableAudio(self._about(row, "the shard holds other data at this place"))
        samples = np.empty(num_samples, dtype=np.int16) if out is None else out
        try:
            with naming(path):
                decoded = OPEN_FILES.spare(lambda: _decode(payload, start_sample, samples))
        except (soundfile.SoundFileError, ValueError, RuntimeError) as error:
            if getattr(error, "code", None) == _MALLOC_FAILED:
                raise MemoryError(f"decoding row {row} of {path}") from error
            raise UnreadableAudio(self._about(row, "the FLAC data does not decode")) from error
        if decoded != num_samples:
            raise UnreadableAudio(self._about(row, f"{decoded} of {num_samples} samples decode"))
        return samples

    def close(self) -> None:
        """Closes all files until the next read."""
        OPEN_FILES.close(self._number)

    def _about(self, row: int, what: str) -> str:
        name = self.index.shards[int(self.index.shard[row])].name
        return f"row {row} of {self.index.path / name} cannot be read: {what}; run openwavlm verify on this shard set"

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardReader, (self.index,)

    def __del__(self) -> None:
        if hasattr(self, "_number"):
            self.close()


def _decode(payload: bytes, start_sample: int, out: np.ndarray) -> int:
    """Decodes a piece of a FLAC file into `out`; returns the number of samples."""
    with file_in_memory(payload) as descriptor, SequentialFile(descriptor) as file:
        if start_sample:
            file.seek(start_sample)
        return len(file.read(out=out))


def read_fields(index: Index, row: int) -> dict[str, Any]:
    """Reads `KEY.json` of a row, which holds more than the index; a ValueError if no JSON follows the row's audio."""
    shard = index.path / index.shards[int(index.shard[row])].name
    with naming(shard), shard.open("rb") as file:
        return _fields_in(file, index, row, shard)


def read_all_fields(index: Index) -> Iterator[dict[str, Any]]:
    """Reads `KEY.json` of every row in order, as `read_fields` does; each shard is opened once."""
    for number, of_shard in enumerate(index.shards):
        shard, found = index.path / of_shard.name, list[dict[str, Any]]()
        if of_shard.rows:
            with naming(shard), shard.open("rb") as file:
                for row in range(int(index.first_row[number]), int(index.first_row[number + 1])):
                    found.append(_fields_in(file, index, row, shard))
        yield from found


def _fields_in(file: BinaryIO, index: Index, row: int, shard: Path) -> dict[str, Any]:
    """Reads `KEY.json` of a row from its open shard."""
    payload = -(-int(index.nbytes[row]) // _TAR_BLOCK) * _TAR_BLOCK
    file.seek(int(index.offset[row]) + payload)
    header = file.read(_TAR_BLOCK)
    name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
    if not name.endswith(".json"):
        raise ValueError(
            f"the audio of row {row} must be followed by its .json in {shard}, but by {name!r}: run openwavlm verify on the shard set"
        )
    fields: dict[str, Any] = json.loads(file.read(int(header[124:136].rstrip(b"\0 "), 8)))
    return fields


def check_shards(index: Index) -> None:
    """Checks that every shard exists, has its size (a tar reader misses a cut between two members) and begins with its first utterance.

    Raises:
        ValueError: For the first shard that is missing, has another size, or holds other audio.
        OSError: If the machine fails repeatedly; names the file.
    """
    for number, shard in enumerate(index.shards):
        path = index.path / shard.name
        retried(partial(_check_shard, index, number, path), path)


def _check_shard(index: Index, number: int, path: Path) -> None:
    shard = index.shards[number]
    way_out = "restore it from a copy, or run openwavlm verify to see all damage"
    if not path.is_file():
        raise ValueError(f"the shard {path} is missing: {way_out}")
    size = path.stat().st_size
    if size != shard.nbytes:
        raise ValueError(f"the shard {path} must have {shard.nbytes} bytes, but has {size}: {way_out}")
    if shard.rows == 0:
        return
    row = int(index.first_row[number])
    with path.open("rb") as file:
        file.seek(int(index.offset[row]))
        head = file.read(64)
    if pcm_id(flac_md5(head)) != int(index.pcm[row]):
        raise ValueError(f"the shard {path} does not begin with its first utterance (was it swapped for another?): {way_out}")
