"""The `KEY.json` of a row, straight out of its tar: what the index does not hold (place in the original file, members' names)."""

import json
from typing import Any

from openwavlm.runtime.resources import naming
from openwavlm.shards.index import Index

_BLOCK = 512


def read_fields(index: Index, row: int) -> dict[str, Any]:
    """Reads the JSON fields that lie behind a row's audio.

    Raises:
        ValueError: If there is none, so that the shard is not the one that the index describes.
    """
    shard = index.path / index.shards[int(index.shard[row])].name
    payload = -(-int(index.nbytes[row]) // _BLOCK) * _BLOCK
    with naming(shard), shard.open("rb") as file:
        file.seek(int(index.offset[row]) + payload)
        header = file.read(_BLOCK)
        name = header[:100].rstrip(b"\0").decode("utf-8", "replace")
        if not name.endswith(".json"):
            raise ValueError(
                f"the audio of row {row} must be followed by its .json in {shard}, but by {name!r}: run data_prep/verify.py on the "
                "shard set"
            )
        fields: dict[str, Any] = json.loads(file.read(int(header[124:136].rstrip(b"\0 "), 8)))
    return fields
