"""Writes what version 1 of the formats held, from files of the present version: no identity of the names, no seals, no file checksums.

The bytes equal those that the commit 97db807, the last of version 1, writes for the same input.
"""

import json
from pathlib import Path
from typing import Any


def _write(path: Path, content: dict[str, Any], indent: int | None = 1) -> None:
    path.write_text(json.dumps(content, indent=indent, sort_keys=True) + "\n")


def _without(content: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name not in names}


def shards_of_format_one(folder: Path) -> Path:
    """Rewrites a shard set in place."""
    for file in folder.glob("shards/*/*.json"):
        _write(file, _without(json.loads(file.read_text()), "seal", "metadata") | {"format_version": 1}, None)
    for file in [*folder.glob("done/*/*.json"), folder / "settings.json"]:
        _write(file, _without(json.loads(file.read_text()), "seal") | {"format_version": 1})
    mark = folder / "index" / "shards.json"
    head = _without(json.loads(mark.read_text()), "seal", "metadata", "files")
    _write(mark, head | {"format_version": 1, "shards": [_without(shard, "metadata") for shard in head["shards"]]})
    return folder


def meta_of_format_one(folder: Path) -> Path:
    """Rewrites the `meta.json` of labels or of a codebook in place."""
    meta = json.loads((folder / "meta.json").read_text())
    if meta["kind"] == "labels":
        meta = _without(meta, "seal") | {"format_version": 1}
    for pack in meta.get("packs", []):
        pack["shards"] = [_without(shard, "metadata") for shard in pack["shards"]]
    for name in {"fitted", "codebook_fitted"} & set(meta):
        meta[name] = _without(meta[name], "metadata")
    _write(folder / "meta.json", meta)
    return folder


def run_of_format_one(folder: Path) -> Path:
    """Rewrites the `run.json` of a run in place; its checkpoints must come from `without_names`."""
    record = json.loads((folder / "run.json").read_text())
    for holder in (record, *record["segments"]):
        holder["fingerprints"] = {k: v for k, v in holder["fingerprints"].items() if not k.startswith("metadata.")}
    record["heard"] = [_without(entry, "metadata") for entry in record.pop("trained_on")]
    record = {**_without(_without(record, "seal"), "configs"), "format_version": 1}
    (folder / "run.json").write_text(json.dumps(record, indent=1) + "\n")
    return folder


def without_names() -> None:
    """Patches a launch (`runs.launch(patch=…)`) to bind checkpoints to what version 1 bound them to."""
    from openwavlm.training.module import TrainingModule

    original = TrainingModule.__init__

    def initialise(self: Any, *arguments: Any, fingerprints: dict[str, str], **settings: Any) -> None:
        kept = {name: value for name, value in fingerprints.items() if not name.startswith("metadata.")}
        original(self, *arguments, fingerprints=kept, **settings)

    TrainingModule.__init__ = initialise  # type: ignore[method-assign]
