"""make_shards on long recordings: memory in proportion to one channel of one recording, whatever becomes of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

HOUR_BYTES = 3600 * 16_000 * 2
PROGRAM = """
import json, resource, sys
from openwavlm.shards.prepare import make_shards
make_shards(**json.loads(sys.argv[1]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write_noise(path: Path, seconds: int) -> Path:
    """Two channels of noise, which FLAC cannot make much smaller."""
    path.parent.mkdir(parents=True)
    noise = np.random.default_rng(0).integers(-8000, 8000, size=(160_000, 2)).astype(np.int16)
    with soundfile.SoundFile(path, "w", 16_000, 2, "PCM_16") as file:
        for start in range(0, seconds * 16_000, 160_000):
            file.write(np.roll(noise, start // 1000, axis=0)[: seconds * 16_000 - start])
    return path


def peak_bytes(output: Path, **settings: object) -> int:
    arguments = json.dumps({"output": str(output), "min_seconds": 0.5, **settings})
    done = subprocess.run([sys.executable, "-c", PROGRAM, arguments], capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_memory_is_that_of_one_channel_and_its_flac(tmp_path: Path) -> None:
    base = peak_bytes(tmp_path / "short", input=str(write_noise(tmp_path / "in1" / "a.wav", 2).parent), channels="split")
    long = write_noise(tmp_path / "in2" / "a.wav", 3600)
    manifest = tmp_path / "in2" / "m.jsonl"
    rows = ({"path": "a.wav", "offset": 10 * n, "duration": 10} for n in range(360))
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, settings in {
        "mean": {"input": str(long.parent)},
        "split": {"input": str(long.parent), "channels": "split"},
        "segments": {"input": str(manifest), "layout": "manifest"},
    }.items():
        # Samples and FLAC of a channel, and what is held of a task's FLAC before it lies on disk; for 12 h that is 3.1 GiB.
        assert peak_bytes(tmp_path / name, **settings) - base < 2.2 * HOUR_BYTES + 2**28, name
