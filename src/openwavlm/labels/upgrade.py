"""Labellings of older formats, brought to the newest one in place; no label and no table is touched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from openwavlm.labels.label_packs import FORMAT_VERSION
from openwavlm.labels.store import LabelPacks
from openwavlm.runtime.atomic import write_json, writer_lock
from openwavlm.runtime.sealed import CHECKSUM, sealed


def upgrade_labels(folder: Path | str, add: Callable[[dict[str, Any]], None] = lambda meta: None) -> bool:
    """Reads a labelling of an older format against its checksums and then writes its `meta.json` in the newest one.

    Args:
        folder: The labelling; being killed leaves it as it was, or upgraded.
        add: Adds in place, to what `meta.json` says, what a labelling of any format may lack.

    Returns:
        True if anything had to be changed.

    Raises:
        ValueError: If it is not finished, is of a newer format or damaged, or another process writes to it.
    """
    folder = Path(folder)
    with writer_lock(folder):
        packs = LabelPacks.open(folder)
        if packs.meta["format_version"] != FORMAT_VERSION:
            packs.check()
        meta = packs.meta | {"format_version": FORMAT_VERSION}
        add(meta)
        changed = sealed(meta)[CHECKSUM] != packs.meta.get(CHECKSUM)
        if changed:
            write_json(folder / "meta.json", sealed(meta))
    return changed
