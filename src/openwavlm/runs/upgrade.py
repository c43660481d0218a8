"""Upgrade of shard sets, labels, codebooks and runs of format 1 to the present formats, in place.

Shard sets get checksums and a second identity, of their names (`metadata`), to which the others are bound. Tars, labels, centroids and
weights are not written.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from openwavlm.batches.settings import label_folders
from openwavlm.labels.labelling import upgrade_labels
from openwavlm.runs.lock import RunLock
from openwavlm.runs.run_directory import RunRecord
from openwavlm.runtime.atomic import write_json
from openwavlm.runtime.files import Fields, read_json
from openwavlm.shards.index import Index
from openwavlm.shards.upgrade import upgrade_shards
from openwavlm.training.run_files import read_config

_REMEDY = "restore it from a copy"


def upgrade(paths: Sequence[Path]) -> dict[Path, bool]:
    """Upgrades shard sets, labels, codebooks and runs; returns for each folder whether it was changed, in the order of the work.

    Args:
        paths: Their folders, or folders above them, in any order; data that a run names are upgraded too.

    Raises:
        ValueError: If a folder is none of these and holds none, is damaged, of a newer format or in use; if the shard sets of labels or
            of a codebook were not given; if the data of a run are not those that it was trained on.
    """
    kinds = {folder: kind for path in paths for folder, kind in _found(path).items()}
    runs = {path: read_config(path / "config.yaml") for path, kind in kinds.items() if kind == "run"}
    shards = [path for path, kind in kinds.items() if kind == "shards"]
    labels = [path for path, kind in kinds.items() if kind == "meta"]
    for run, config in runs.items():
        named_shards, named_labels = _named(run, config)
        shards += named_shards
        labels += named_labels
    changed: dict[Path, bool] = {}
    # By resolved path: a config may have an absolute path of a folder that was given by a relative one.
    indexes: dict[Path, Index] = {}
    for place, folder in {folder.resolve(): folder for folder in shards[::-1]}.items():
        changed[folder] = upgrade_shards(folder)
        indexes[place] = Index.open(folder)
    for folder in {folder.resolve(): folder for folder in labels[::-1]}.values():
        changed[folder] = _upgrade_meta(folder, indexes.values())
    for run, config in runs.items():
        changed[run] = _upgrade_run(run, config, indexes)
    return changed


def _found(path: Path) -> dict[Path, str]:
    """Folders to upgrade and their kinds: the path itself, or all below it; links are not followed."""
    if kind := _kind(path):
        return {path: kind}
    found: dict[Path, str] = {}
    for place, folders, _ in os.walk(path):
        folders.sort()
        if kind := _kind(Path(place), below=True):
            found[Path(place)] = kind
            folders.clear()
    if found:
        return found
    raise ValueError(
        f"{path} must be a shard set (tasks.jsonl, index/), labels or a codebook (meta.json), a run (run.json, config.yaml), or a folder "
        "that such folders lie below, but has none of these files"
    )


def _kind(path: Path, *, below: bool = False) -> str | None:
    """Kind of a folder; `below` a given one it must hold more, since `index/` and `meta.json` may be another program's."""
    if (path / "run.json").is_file() and (path / "config.yaml").is_file():
        return "run"
    if (path / "meta.json").is_file():
        return "meta" if not below or [*path.glob("codebook.npy"), *path.glob("pack-*.u16")] else None
    if (path / "index").is_dir() or (path / "tasks.jsonl").is_file():
        return "shards" if not below or any((path / name).is_file() for name in ("index/shards.json", "settings.json")) else None
    return None


def _named(run: Path, config: dict[str, Any]) -> tuple[list[Path], list[Path]]:
    """The shard sets and labels of a run's config."""
    where = Fields(config, str(run / "config.yaml"), _REMEDY)
    data = Fields(where.mapping("data"), f"{run / 'config.yaml'}, data", _REMEDY)
    probes = Fields(where.mapping("probes") if config.get("probes") else {}, f"{run / 'config.yaml'}, probes", _REMEDY)
    named = ((data, "noise"), (probes, "train"), (probes, "dev"))
    shards = [fields.text(name) for fields, name in named if fields.values.get(name)]
    labels: list[Path] = []
    for name in ("sources", *(["validation"] if data.values.get("validation") else [])):
        sets = Fields(data.mapping(name), f"{data.where}.{name}", _REMEDY)
        for key in sets.values:
            source = Fields(sets.mapping(key), f"{sets.where}.{key}", _REMEDY)
            shards.append(source.text("shards"))
            folders = source.values.get("labels")
            if not folders or not all(isinstance(one, str) for one in (folders if isinstance(folders, list) else [folders])):
                raise source.refusal("labels", "a folder or a list of folders", folders)
            labels += label_folders(folders)
    for folder in (*map(Path, shards), *labels):
        if not folder.is_dir():
            raise ValueError(
                f"{run / 'config.yaml'} names {folder}, but there is no such folder: run the command where train.py was run, or move "
                "the folder back"
            )
    return [Path(folder) for folder in shards], labels


def _upgrade_meta(path: Path, indexes: Iterable[Index]) -> bool:
    """Adds the names' hash to each shard of labels, and to each shard set of a codebook, as far as the shard sets are known."""
    by_identity, by_fingerprint = defaultdict[str, set[str]](set), defaultdict[str, set[str]](set)
    for index in indexes:
        by_fingerprint[index.fingerprint].add(index.metadata)
        for of_shard in index.shards:
            by_identity[of_shard.identity].add(of_shard.metadata)

    def add(meta: dict[str, Any]) -> None:
        shards = [shard for pack in meta["packs"] for shard in pack["shards"]]
        known = [shard for shard in shards if "metadata" not in shard and shard["identity"] in by_identity]
        for shard in known:
            shard["metadata"] = _only(by_identity[shard["identity"]], path)
        if shards and not any("metadata" in shard for shard in shards):
            raise _not_given(path)
        _add_to_fit(meta["codebook_fitted"], by_fingerprint, path)

    head = read_json(path / "meta.json", remedy=_REMEDY)
    if head.text("kind") == "labels":
        return upgrade_labels(path, add)
    fitted = head.mapping("fitted")
    changed = _add_to_fit(fitted, by_fingerprint, path)
    if "split_seed" in fitted and fitted.get("indexes") and not fitted.get("metadata"):
        raise _not_given(path)
    if changed:
        write_json(path / "meta.json", head.values)
    return changed


def _add_to_fit(fitted: dict[str, Any], by_fingerprint: Mapping[str, set[str]], path: Path) -> bool:
    known = fitted.get("metadata", {})
    found = {name: _only(by_fingerprint[name], path) for name in fitted.get("indexes", []) if name in by_fingerprint}
    changed = "split_seed" in fitted and not found.keys() <= known.keys()
    if changed:
        fitted["metadata"] = found | known
    return changed


def _not_given(path: Path) -> ValueError:
    return ValueError(
        f"{path} was made from a shard set that was not given: name it too, as in `openwavlm upgrade SHARDS {path}`"
    )


def _only(values: set[str], path: Path) -> str:
    if len(values) > 1:
        raise ValueError(
            f"{path} was made from audio that several of the given shard sets hold under different names: give only the right one"
        )
    return next(iter(values))


def _upgrade_run(run: Path, config: dict[str, Any], indexes: dict[Path, Index]) -> bool:
    """Adds the names' hash of each shard set to the fingerprints of a run and of its launches."""
    lock = RunLock(run)
    try:
        record = RunRecord(run)
        by_fingerprint = {index.fingerprint: index.metadata for index in indexes.values()}
        fingerprints = record.content.get("fingerprints", {})
        sets = {**config["data"]["sources"], **(config["data"].get("validation") or {})}
        for name, source in sets.items():
            index = indexes[Path(source["shards"]).resolve()]
            if fingerprints.get(f"shards.{name}", index.fingerprint) != index.fingerprint:
                raise ValueError(
                    f"{run / 'run.json'} records other audio than {index.path} holds now (shards.{name}): put back the shard set that the "
                    "run was trained on"
                )
        changed = _add_names(fingerprints, by_fingerprint)
        for segment in record.content["segments"]:
            changed |= _add_names(segment.get("fingerprints", {}), by_fingerprint)
        for entry in record.content.get("trained_on", []):
            known = {name: by_fingerprint.get(name) for name in (*entry["indexes"], *entry["validation_indexes"])}
            if "metadata" not in entry and all(known.values()):
                entry["metadata"], changed = known, True
        if changed:
            record.save()
    finally:
        lock.release()
    return changed


def _add_names(fingerprints: dict[str, str], metadata: dict[str, str]) -> bool:
    """Adds `metadata.NAME` for every `shards.NAME` whose shard set is known; returns whether there was one."""
    names = [name.removeprefix("shards.") for name in fingerprints if name.startswith("shards.")]
    lacking = [name for name in names if f"metadata.{name}" not in fingerprints and fingerprints[f"shards.{name}"] in metadata]
    for name in lacking:
        fingerprints[f"metadata.{name}"] = metadata[fingerprints[f"shards.{name}"]]
    return bool(lacking)
