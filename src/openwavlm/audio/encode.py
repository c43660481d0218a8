"""Encodes samples as files in memory: the FLAC payload that shards store, other containers for listening."""

import hashlib
import os

import numpy as np
import soundfile

from openwavlm.audio.containers.file_bytes import read_at
from openwavlm.audio.decoders.libsndfile import file_in_memory
from openwavlm.audio.frames import SAMPLE_RATE_HZ


def encode_flac(samples: np.ndarray) -> bytes:
    """Encodes int16 (samples,) as a 16 kHz mono 16-bit FLAC file; equal samples give equal bytes."""
    return encode(samples, "FLAC", "PCM_16")


def encode(samples: np.ndarray, container: str, subtype: str) -> bytes:
    """Encodes (samples,), int16 or float in [−1, 1], as a 16 kHz mono file of a container and subtype that libsndfile writes."""
    with file_in_memory() as descriptor:
        soundfile.write(descriptor, samples, SAMPLE_RATE_HZ, format=container, subtype=subtype, closefd=False)
        return read_at(descriptor, os.fstat(descriptor).st_size, 0)


def pcm_md5(samples: np.ndarray) -> bytes:
    """MD5 (16 bytes) of int16 samples as FLAC defines it: little-endian."""
    return hashlib.md5(np.ascontiguousarray(samples, dtype="<i2").tobytes()).digest()


def pcm_id(md5: bytes) -> int:
    """First 64 bits of a PCM MD5, the `pcm` column of the index."""
    return int.from_bytes(md5[:8], "little")
