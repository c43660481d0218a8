"""Reads utterances, or pieces of them, straight out of the shards: one `pread` of the FLAC payload, one decode, no tar reader."""

import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from openwavlm.data.audio import flac_md5, pcm_id
from openwavlm.data.index import Index
from openwavlm.data.sound_files import SequentialFile, file_in_memory

_MAX_DESCRIPTORS = 256


class UnreadableAudio(ValueError):  # noqa: N818
    """A row whose audio is missing, is not what the index says, or does not decode."""


class ShardReader:
    """Reader of a shard set's audio.

    Files are opened on first use and at most 256 are kept open; `pread` shares no file position, so a reader survives `fork`, and
    a pickled reader opens its files anew.
    """

    def __init__(self, index: Index | Path | str) -> None:
        self.index = index if isinstance(index, Index) else Index.open(index, check=False)
        self._files: OrderedDict[int, int] = OrderedDict()

    def read(
        self, row: int, start_sample: int = 0, num_samples: int | None = None, *, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Reads an utterance or a piece of it.

        Args:
            row: Row of the index.
            start_sample: First sample.
            num_samples: How many; None for the rest of the utterance.
            out: int16 (num_samples,), contiguous, to decode into; after an error it may hold part of the audio.

        Returns:
            int16 (num_samples,); `out` where it was given.

        Raises:
            UnreadableAudio: If the shard is missing or too short, holds another utterance at this place, or does not decode.
        """
        index = self.index
        shard, nbytes = int(index.shard[row]), int(index.nbytes[row])
        if num_samples is None:
            num_samples = int(index.num_samples[row]) - start_sample
        try:
            payload = os.pread(self._descriptor(shard), nbytes, int(index.offset[row]))
        except OSError as error:
            raise UnreadableAudio(self._about(row, error.strerror or str(error))) from error
        if pcm_id(flac_md5(payload)) != int(index.pcm[row]):
            raise UnreadableAudio(self._about(row, "the shard holds something else at this place"))
        try:
            with file_in_memory(payload) as descriptor, SequentialFile(descriptor) as file:
                if start_sample:
                    file.seek(start_sample)
                samples = np.empty(num_samples, dtype=np.int16) if out is None else out
                decoded = len(file.read(out=samples))
        except (soundfile.SoundFileError, ValueError, RuntimeError) as error:
            raise UnreadableAudio(self._about(row, "the FLAC data does not decode")) from error
        if decoded != num_samples:
            raise UnreadableAudio(self._about(row, f"{decoded} of {num_samples} samples decode"))
        return samples

    def close(self) -> None:
        """Closes all files; the next read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _descriptor(self, shard: int) -> int:
        files = self._files
        if shard in files:
            files.move_to_end(shard)
            return files[shard]
        if len(files) >= _MAX_DESCRIPTORS:
            os.close(files.popitem(last=False)[1])
        files[shard] = descriptor = os.open(self.index.path / self.index.shards[shard].name, os.O_RDONLY | os.O_CLOEXEC)
        return descriptor

    def _about(self, row: int, what: str) -> str:
        name = self.index.shards[int(self.index.shard[row])].name
        return f"row {row} of {self.index.path / name} cannot be read: {what}; run data_prep/verify.py on this shard set"

    def __getstate__(self) -> dict[str, Any]:
        return {"index": self.index, "_files": OrderedDict()}

    def __del__(self) -> None:
        if hasattr(self, "_files"):
            self.close()


def check_shards(index: Index) -> None:
    """Checks before a run that every shard is there, has its full size and begins with its own first utterance.

    A tar that was cut between two members ends silently in every tar reader: the size tells.

    Raises:
        ValueError: Naming the first shard that is missing, has another size, or holds other audio.
    """
    for number, shard in enumerate(index.shards):
        path = index.path / shard.name
        way_out = "restore it from a copy, or run data_prep/verify.py to see all damage"
        if not path.is_file():
            raise ValueError(f"the shard {path} is missing: {way_out}")
        size = path.stat().st_size
        if size != shard.nbytes:
            raise ValueError(f"the shard {path} must have {shard.nbytes} bytes, but has {size}: {way_out}")
        if shard.rows == 0:
            continue
        row = int(index.first_row[number])
        with path.open("rb") as file:
            file.seek(int(index.offset[row]))
            head = file.read(64)
        if pcm_id(flac_md5(head)) != int(index.pcm[row]):
            raise ValueError(f"the shard {path} does not begin with its first utterance (was it swapped for another?): {way_out}")
