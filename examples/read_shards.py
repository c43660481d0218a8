"""Shards read without OpenWavLM: plain webdataset and soundfile.

    python examples/read_shards.py SHARDS

Prints key, speaker and duration of the first utterances. The names of speakers and sources stand in the JSON beside each recording.
"""

import io
import json
import sys
from pathlib import Path

import soundfile
import webdataset

SHOWN = 5


def main(shards: str) -> None:
    """Prints the first utterances of a shard set."""
    tars = [str(path) for path in sorted(Path(shards).rglob("*.tar"))]
    for sample, _ in zip(webdataset.WebDataset(tars, shardshuffle=False), range(SHOWN), strict=False):
        audio, rate = soundfile.read(io.BytesIO(sample["flac"]), dtype="int16")
        about = json.loads(sample["json"])
        print(sample["__key__"], about.get("speaker") or "unknown speaker", f"{len(audio) / rate:.2f} s", rate, "Hz")


if __name__ == "__main__":
    main(sys.argv[1])
