"""The one reader of a labelling's `meta.json`: names, types, ranges, totals and checksum, before anything else uses what it says."""

import re
from pathlib import Path
from typing import Any

from openwavlm.labels.kmeans import MAX_CLUSTERS, read_meta
from openwavlm.labels.label_packs import FORMAT_VERSION, GRID, ROW_DTYPE
from openwavlm.runtime.files import Fields
from openwavlm.runtime.sealed import CHECKSUM, checksum_of

MADE_BY = "data_prep/assign_labels.py"
AGAIN = f"copy the folder again, or delete it and make the labels again with {MADE_BY}"
_FIRST_WITH_CHECKSUM = 3
_TOTALS = ("rows", "frames", "unreadable_rows")


def read_labels_meta(folder: Path) -> dict[str, Any]:
    """Reads what a labelling says of itself.

    Args:
        folder: The labelling.

    Returns:
        `meta.json`, of any format version up to the newest.

    Raises:
        ValueError: If the labelling is not finished, is of a newer format, lies on another frame grid, or its `meta.json` is damaged
            or contradicts itself.
    """
    meta = read_meta(folder, kind="labels", newest=FORMAT_VERSION, made_by=MADE_BY)
    head = Fields(meta, str(folder / "meta.json"), AGAIN)
    for name, expected in GRID.items():
        if (found := head.number(name)) != expected:
            raise ValueError(
                f"labels must lie on the model's frame grid, {name} = {expected:g}, but those in {folder} have {name} = "
                f"{found:g}: make them again with {MADE_BY}"
            )
    _check_head(head)
    packs = head.objects("packs")
    names: set[str] = set()
    identities: set[str] = set()
    for pack in packs:
        check_record(pack)
        own = [shard.text("identity") for shard in pack.objects("shards")]
        if pack.text("name") in names or len(set(own) - identities) < len(own):
            raise ValueError(f"{pack.where} names a pack or a shard that was named before: {AGAIN}")
        names.add(pack.text("name"))
        identities.update(own)
    _check_sum(head, "shards", len(identities))
    for name in _TOTALS:
        _check_sum(head, name, sum(pack.integer(name) for pack in packs))
    named = head.integer("format_version", 1) >= _FIRST_WITH_CHECKSUM or CHECKSUM in meta
    if named and head.text(CHECKSUM) != checksum_of(meta):
        raise ValueError(f"{head.where} is damaged (its own checksum does not hold): {AGAIN}")
    return meta


def _check_head(head: Fields) -> None:
    classes = head.integer("num_classes", 1, MAX_CLUSTERS)
    head.text("codebook_hash")
    head.mapping("features")
    fitted = Fields(head.mapping("codebook_fitted"), f"{head.where}, codebook_fitted", AGAIN)
    if "split_seed" in fitted.values:
        fitted.integer("split_seed", -(2**63))
        if not 0 <= fitted.number("validation_share") < 1:
            raise fitted.refusal("validation_share", "a number in [0, 1)", fitted.values["validation_share"])
        if "indexes" in fitted.values:
            fitted.texts("indexes")
    for name, allowed in (("dtype", "<u2"), ("centroids", "unknown")):
        if name in head.values and head.text(name) != allowed:
            raise head.refusal(name, allowed, head.values[name])
    counts = head.lists("label_counts")
    if len(counts) != classes or not all(type(count) is int and count >= 0 for count in counts):
        raise head.refusal("label_counts", f"a list of {classes} whole numbers from 0 on", counts)
    _check_sum(head, "frames", sum(counts))


def check_record(pack: Fields) -> None:
    """Checks a pack's record by itself.

    Raises:
        ValueError: If a field is absent or of another type or range, or the shards do not add up to the pack.
    """
    # Files are opened by this name, so it must not lead to another folder.
    if not re.fullmatch(r"pack-[0-9]{5,9}|shard-[0-9a-f]{32}", pack.text("name")):
        raise pack.refusal("name", "a name as pack-00000", pack.values["name"])
    for name in ("labels_checksum", "rows_checksum"):
        _check_checksum(pack, name)
    if "computed_on" in pack.values:
        pack.text("computed_on")
    shards = pack.objects("shards")
    for shard in shards:
        shard.text("identity")
        _check_checksum(shard, "checksum")
    for name in ("rows", "frames"):
        _check_sum(pack, name, sum(shard.integer(name) for shard in shards))
    _check_sum(pack, "labels_bytes", 2 * pack.integer("frames"))
    pack.integer("unreadable_rows", 0, pack.integer("rows"))
    pack.integer("rows_bytes", pack.integer("rows") * ROW_DTYPE.itemsize)


def _check_checksum(fields: Fields, name: str) -> None:
    if not re.fullmatch(r"[0-9a-f]{32}", fields.text(name)):
        raise fields.refusal(name, "a checksum of 32 hexadecimal digits", fields.values[name])


def _check_sum(fields: Fields, name: str, total: int) -> None:
    if fields.integer(name) != total:
        raise ValueError(f"{fields.where}: {name} is {fields.integer(name)}, but its parts add up to {total}: {AGAIN}")
